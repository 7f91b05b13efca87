"""A head on the target's states, made ready: its calls, in every runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from specalign.decoding.cache import RowCache
from specalign.decoding.stepper import Graphs, Runtime, Shapes, StaticCache
from specalign.models.eagle import EagleHead
from specalign.models.heads import Head, head_of, pack_head
from specalign.models.packing import pack_linears
from specalign.models.properties import context_limit

PART = 32
"""Positions that an eager call catches up with at most."""


@dataclass(frozen=True)
class HeadStepper:
    """A head, what its output is multiplied with, and its compiled step where there is one."""

    model: EagleHead
    head: Head
    """Over its draft vocabulary."""
    context: int | None
    """Positions that the head knows."""
    compiled: CompiledHead | None = None

    @property
    def most(self) -> int:
        """Positions that one call may catch up with."""
        return self.compiled.catch_up.most if self.compiled else PART

    def cache(self, source: RowCache, rows: Sequence[int], lengths: Sequence[int], capacity: int) -> RowCache:
        """The cache of a request: row i is row ``rows[i]`` of ``source``, cut to ``lengths[i]``."""
        if self.compiled is None:
            return source.select(rows, lengths, capacity)
        self.compiled.cache.fill(source, rows, lengths)
        return self.compiled.cache

    def __call__(
        self, ids: Tensor, inputs: Tensor, at: Tensor, cache: RowCache, *, true: bool
    ) -> tuple[Tensor, Tensor]:
        """Append entries to every row of ``cache``, whose lengths stay the caller's.

        ``ids`` [B, n]; ``inputs``: the target's states [B, n, k h_t] where they are the ``true`` ones, the head's own
        outputs [B, n, h] otherwise; ``at`` [B]: the entry of each row that is drafted from. Returns its logits
        [B, V'] and the head's output there [B, 1, h].
        """
        inputs = inputs.to(self.model.dtype)
        if self.compiled and cache is self.compiled.cache:
            return self.compiled(ids, inputs, at, true=true)
        positions = cache.begin(ids.shape[1], ids.device)
        keys = torch.arange(cache.end, device=ids.device)
        last = min(cache.end, self.context or cache.end) - 1
        output = self.model(
            ids,
            self.model.project(inputs) if true else inputs,
            position_ids=positions.clamp(max=last),  # beyond the context there is only padding
            attention_mask=(keys <= positions.unsqueeze(2)).unsqueeze(1),
            past_key_values=cache,
        )
        return _drafted(self.model, self.head, output, at)


def make_head_stepper(
    model: EagleHead,
    runtime: Runtime = "eager",
    *,
    shapes: Shapes | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> HeadStepper:
    """Make a head ready. ``packed`` replaces its linear layers in place; ``compiled`` needs ``shapes``.

    Their sizes are the positions that one call may catch up with: after a draft of gamma tokens up to gamma + 1.
    """
    if runtime == "packed":
        pack_linears(model)
    head, context = replace(head_of(model), ids=model.draft_ids), context_limit(model)
    if runtime != "compiled":
        return HeadStepper(model, pack_head(head) if runtime == "packed" else head, context)
    if shapes is None:
        raise ValueError("a compiled step needs its static shapes")
    compiled = CompiledHead(model, head, shapes)
    compiled.compile(progress)
    return HeadStepper(model, head, context, compiled)


class CompiledHead:
    """A head's calls over one static cache: catching up with true states, and one drafted token after another."""

    def __init__(self, model: EagleHead, head: Head, shapes: Shapes) -> None:
        self.model, self.head, self.shapes = model, head, shapes
        self.cache = RowCache(1, shapes.n_rows, shapes.capacity)
        steps = (_HeadStep(model, head, shapes.capacity, true=true) for true in (True, False))
        one = replace(shapes, sizes=(1,))
        self.catch_up, self.follow = (
            Graphs(step, self.cache, sizes, model.device)
            for step, sizes in zip(steps, (shapes, one), strict=True)
        )

    @torch.inference_mode()
    def compile(self, progress: Callable[[int], None]) -> None:
        """Trace and compile both kinds of calls, of all sizes."""
        HeadStepper(self.model, self.head, None)(*self._blank(1, True), self.cache, true=True)
        self.catch_up.compile(lambda size: self(*self._blank(size, True), true=True), progress)
        self.follow.compile(lambda size: self(*self._blank(size, False), true=False), progress)

    def __call__(self, ids: Tensor, inputs: Tensor, at: Tensor, *, true: bool) -> tuple[Tensor, Tensor]:
        """As :meth:`HeadStepper.__call__`, at the cache's lengths."""
        graphs = self.catch_up if true else self.follow
        logits, output = graphs(self.cache.lengths, ids, inputs, at)
        return logits[: len(ids)], output[: len(ids)]

    def _blank(self, size: int, true: bool) -> tuple[Tensor, Tensor, Tensor]:
        n_rows, fc = self.shapes.n_rows, self.model.fc
        ids = torch.zeros(n_rows, size, dtype=torch.long, device=self.model.device)
        inputs = fc.weight.new_zeros(n_rows, size, fc.in_features if true else fc.out_features)
        self.cache.lengths = [0] * n_rows
        return ids, inputs, ids[:, 0]


class _HeadStep(nn.Module):
    """What is traced."""

    def __init__(self, model: EagleHead, head: Head, capacity: int, *, true: bool) -> None:
        super().__init__()
        self.model, self.head, self.capacity, self.true = model, head, capacity, true
        self.last = min(capacity, context_limit(model) or capacity) - 1

    def forward(
        self,
        ids: Tensor,
        inputs: Tensor,
        at: Tensor,
        positions: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, V'] and output [B, 1, h] at entry ``at`` [B] of ids [B, n]; the cache is written in place."""
        places = torch.arange(self.capacity, device=ids.device)
        output = self.model(
            ids,
            self.model.project(inputs) if self.true else inputs,
            position_ids=positions.clamp(max=self.last),
            attention_mask=(places <= positions.unsqueeze(2)).unsqueeze(1),
            past_key_values=StaticCache(positions, keys, values),
        )
        return _drafted(self.model, self.head, output, at)


def _drafted(model: EagleHead, head: Head, output: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The logits [B, V'] and the output [B, 1, h] at entry ``at`` [B] of the outputs [B, n, h]."""
    there = output[torch.arange(len(output), device=output.device), at].unsqueeze(1)
    return head(model.head_input(there)).squeeze(1), there
