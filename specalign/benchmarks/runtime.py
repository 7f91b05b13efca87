"""How the models of a run step: eager, packed or compiled, chosen once and before anything is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.benchmarks.config import DecodingConfig
from specalign.benchmarks.prompts import longest
from specalign.data import Prompt
from specalign.decoding import Drafter, HeadStepper, Shapes, Stepper, make_head_stepper, make_stepper
from specalign.decoding.parallel import drafts_at_once
from specalign.decoding.stepper import Runtime
from specalign.errors import UserError
from specalign.models.eagle import EagleHead
from specalign.models.packing import can_pack
from specalign.models.properties import position_scaling
from specalign.progress import progress_bar

DRAFTER_SIZES = (1, 2)
"""Tokens that a drafting step feeds: the last one, and after a whole accepted draft the one before it."""
CAPACITY_STEP = 64
"""A compiled cache's positions are a multiple of this."""

Progress = Callable[[int], None]


def resolve_runtime(
    asked: Literal["auto", "eager", "packed", "compiled"],
    target: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
    *,
    quantized: bool = False,
) -> Runtime:
    """What ``auto`` stands for on this machine: packed on a CPU that can, compiled on CUDA where that can be.

    Launched one by one, a step's kernels take longer than they run: eager times on CUDA are Python's. ``target`` may
    be without weights; ``quantized`` ones are bitsandbytes' layers, which are no single graph. Raises UserError for a
    runtime that cannot be had.
    """
    packs = device.type == "cpu" and can_pack(torch.empty(0, 0, dtype=dtype))
    obstacle = _obstacle(target)
    if asked == "auto":
        if packs and not quantized:
            return "packed"
        return "compiled" if device.type == "cuda" and not obstacle and not quantized else "eager"
    if asked == "compiled" and obstacle:
        raise UserError(f"{obstacle}; use decoding.runtime = eager or packed")
    if asked == "packed" and not packs:
        kind = str(dtype).removeprefix("torch.")
        raise UserError(
            f"nothing can be packed for {kind} on {device}; use decoding.runtime = eager or compiled"
        )
    return asked


def _obstacle(target: PreTrainedModel) -> str:
    """Why a target cannot be compiled; empty: it can."""
    if target.config.is_encoder_decoder:
        return "encoder-decoder models cannot be compiled"
    if scaling := position_scaling(target.config):
        kind = scaling.kind
        return f"models with {kind} scaling of positions cannot be compiled: it reads the length of the text"
    return ""


def make_ready(
    decoding: DecodingConfig,
    target: PreTrainedModel,
    drafters: Mapping[str, Drafter | None],
    prompts: Sequence[Prompt],
    *,
    composed: bool,
) -> tuple[Stepper, dict[str, Drafter | None]]:
    """Target and drafters as the suite's runtime steps them. Raises UserError where that cannot be.

    A drafter that is ``composed`` with another one catches up with what that one drafted, a whole draft at a time.
    """
    quantized = getattr(target, "quantization_method", None) is not None
    runtime = resolve_runtime(decoding.runtime, target, target.dtype, target.device, quantized=quantized)
    sizes = (1, *(gamma + 1 for gamma in decoding.gammas))
    most = max(longest(prompt, decoding.max_new_tokens) for prompt in prompts)
    drafting = {
        name: drafter_sizes(drafter, decoding.gammas, composed=composed)
        for name, drafter in drafters.items()
        if drafter
    }
    largest = max(max(each) for each in (sizes, *drafting.values()))
    capacity = rounded_up(most + decoding.max_new_tokens + max(sizes) + largest + 2, CAPACITY_STEP)
    with progress_bar(f"making models ready ({runtime})", _n_graphs(drafters, sizes, drafting)) as bar:
        head_shapes = Shapes((*DRAFTER_SIZES, *sizes), capacity)

        def maker(name: str) -> _Make:
            return _Make(runtime, Shapes(drafting[name], capacity), head_shapes, bar.advance)

        stepper = make_stepper(
            target, runtime, shapes=Shapes(sizes, capacity), reads=all_reads(drafters), progress=bar.advance
        )
        ready = {name: drafter and drafter.made_ready(maker(name)) for name, drafter in drafters.items()}
    return stepper, ready


def drafter_sizes(drafter: Drafter, gammas: Sequence[int], *, composed: bool) -> tuple[int, ...]:
    """Tokens that its model's calls feed, each a graph: pending ones, and of a parallel drafter the masks after them.

    Between the sizes a call is padded. A call that drafts n tokens after a draft of which a were accepted feeds a + n
    tokens: those of a = 0, 1 and n have graphs of their own.
    """
    most = drafts_at_once(drafter)
    lengths = [min(gamma, most) for gamma in gammas] if most > 1 else []
    after_others = [max(gammas) + 1] if composed else []
    masked = [size for n in lengths for size in (n, n + 1, 2 * n)]
    return tuple(sorted({*DRAFTER_SIZES, *after_others, *masked}))


def all_reads(drafters: Mapping[str, Drafter | None]) -> tuple[int, ...]:
    """The layers of the target whose states any drafter reads."""
    return tuple(sorted({layer for drafter in drafters.values() if drafter for layer in drafter.reads}))


@dataclass(frozen=True)
class _Make:
    """A :class:`specalign.decoding.drafters.MakeStepper`."""

    runtime: Runtime
    shapes: Shapes
    head_shapes: Shapes
    """A head enters the target's states of all accepted tokens."""
    progress: Callable[[int], None]

    def __call__(self, model: PreTrainedModel, ids: Tensor | None) -> Stepper:
        """A model that decodes."""
        return make_stepper(model, self.runtime, ids=ids, shapes=self.shapes, progress=self.progress)

    def head(self, model: EagleHead) -> HeadStepper:
        """A head on the target's states."""
        return make_head_stepper(model, self.runtime, shapes=self.head_shapes, progress=self.progress)


def _n_graphs(
    drafters: Mapping[str, Drafter | None], sizes: Sequence[int], drafting: Mapping[str, Sequence[int]]
) -> int:
    models = {name: drafter for name, drafter in drafters.items() if drafter and drafter.kind == "model"}
    of_head = len({*DRAFTER_SIZES, *sizes}) + 1
    graphs = (of_head if drafter.reads else len(drafting[name]) for name, drafter in models.items())
    return len(set(sizes)) + sum(graphs)


def rounded_up(number: int, step: int) -> int:
    """The least multiple of ``step`` that is not below ``number``."""
    return -(-number // step) * step
