"""Less memory for activations, and running out of memory, answered with the numbers of the recipe to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from transformers import PreTrainedModel

from specalign.errors import UserError
from specalign.training.config import TrainConfig

Phase = Literal["rollout", "update"]


@contextmanager
def recomputing(student: PreTrainedModel) -> Iterator[None]:
    """Layers for which ``gradient_checkpointing_enable`` was called keep their inputs alone inside the block.

    transformers does so in training mode alone. The layers are in it here, what is inside them is not: a student
    trains without dropout, with or without this.
    """
    layers = [module for module in student.modules() if getattr(module, "gradient_checkpointing", False)]
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.training = training


@contextmanager
def memory_advice(config: TrainConfig, phase: Phase) -> Iterator[None]:
    """Turn an allocation failure inside the block into a UserError that says what to set."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        doing = "generating rollouts" if phase == "rollout" else "scoring and updating"
        raise UserError(
            f"out of memory while {doing}; try {', '.join(advice(config, phase))} "
            "(specalign-train plan shows what takes how much); checkpoints are intact"
        ) from None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: torch has a class of its own for accelerators, and a message for the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def advice(config: TrainConfig, phase: Phase) -> list[str]:
    """Settings that need less memory than the config's and leave the result as it is, most useful first."""
    if phase == "rollout":
        batch = config.rollout.batch
        return [f"rollout.batch = {batch // 2}"] if batch > 1 else ["a smaller data.max_response_tokens"]
    optimiser, found = config.optimiser, []
    if optimiser.batch > 1:
        steps = -(-optimiser.batch * optimiser.accumulation // (optimiser.batch // 2))
        found.append(f"optimiser.batch = {optimiser.batch // 2} with optimiser.accumulation = {steps}")
    if not optimiser.gradient_checkpointing:
        found.append("optimiser.gradient_checkpointing = true")
    return [*found, "a smaller objective.chunk_tokens"] if found else ["a smaller data.max_prompt_tokens"]
