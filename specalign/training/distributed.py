"""Data parallelism over processes that a launcher started (accelerate launch, torchrun, multi-node ones too).

Each process trains its share of every step's prompts on the whole model; gradients are summed, and divided by
the step's token count, so that n processes do what one process does with the same prompts. Rank 0 writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor

from specalign.errors import UserError

PLUGINS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""Variables by which accelerate's launcher passes on what its own Accelerator would set up."""


WAIT = timedelta(days=7)
"""Longest wait of one process for another. Rank 0 writes the teacher's responses and fits the start by itself, which
takes hours for a large teacher; torch's own limits are 10 minutes (NCCL) and 30 (gloo). It is not what ends a job
whose process died: its launcher does, and gloo's closed connections."""


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the launcher's process group while the context lasts; nothing to do for a single process.

    ``device`` is the recipe's: each process takes a GPU of its own for auto and cuda, where there are any. Raises
    UserError for one GPU's name, which all would share.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.startswith("cuda:"):
        raise UserError(
            f"device {device!r} would be every process's; launch with device = cuda, one GPU for each"
        )
    on_gpus = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=WAIT)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def refuse_plugins(precision: str) -> None:
    """Raise UserError where accelerate was told to do what only the recipe decides on, and would be ignored."""
    for variable, plugin in PLUGINS.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise UserError(
                f"accelerate's {plugin} plugin is not used here: launch without it, and set optimiser.sharded "
                "(choices: moments, weights)"
            )
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    wanted = {"no": precision, "bf16": "bfloat16", "fp16": "float16"}.get(asked)
    if wanted != precision and not (wanted == "bfloat16" and precision == "auto"):
        raise UserError(
            f"accelerate's mixed precision {asked} is not used here: set optimiser.precision "
            "(choices: auto, float32, bfloat16, float16)"
        )


def rank() -> int:
    """This process's number; 0 is the one that writes."""
    return torch.distributed.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes."""
    return torch.distributed.get_world_size() if _active() else 1


def local_device(name: str) -> str:
    """``auto`` and ``cuda`` mean this process's own GPU where several processes run."""
    if _active() and torch.cuda.is_available() and name in ("auto", "cuda"):
        return f"cuda:{torch.cuda.current_device()}"
    return name


def wait_for_all() -> None:
    """Return when every process has come here."""
    if _active():
        torch.distributed.barrier()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Rank 0 runs the block before the others do: what it leaves in a cache is there for them."""
    if rank() != 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums over all processes."""
    return _reduced(values, device, torch.distributed.ReduceOp.SUM) if _active() else list(values)


def largest(value: float, device: torch.device) -> float:
    """The maximum over all processes: the same number on each, so that all take the same decisions by it."""
    return _reduced([value], device, torch.distributed.ReduceOp.MAX)[0] if _active() else value


def _active() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _reduced(
    values: Sequence[float], device: torch.device, how: torch.distributed.ReduceOp.RedOpType
) -> list[float]:
    tensor: Tensor = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor, how)
    return tensor.tolist()
