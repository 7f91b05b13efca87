"""A model made ready for decoding: how its forward calls run.

``eager`` runs the model as it is. ``packed`` is eager with weights laid out for the CPU's kernels
(:mod:`specalign.models.packing`). ``compiled`` traces one static graph for each number of tokens that a step
feeds, so that neither Python nor kernel launches stand between two steps: CUDA graphs on a GPU, frozen weights
and C++ matrix templates on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from specalign.decoding.cache import RowCache
from specalign.decoding.kernels import compile_step, trace
from specalign.decoding.transfer import to_device
from specalign.models.attention import attention_for
from specalign.models.heads import Head, head_of, pack_head
from specalign.models.masks import attention_masks
from specalign.models.packing import pack_linears
from specalign.models.properties import context_limit, decoder_layers
from specalign.models.states import States, read_for_good

Runtime = Literal["eager", "packed", "compiled"]


@dataclass(frozen=True)
class Stepper:
    """A model, its head, and the compiled step where there is one."""

    model: PreTrainedModel
    head: Head
    compiled: CompiledStep | None = None
    runtime: Runtime = "eager"

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device


@dataclass(frozen=True)
class Shapes:
    """The static shapes of a compiled step."""

    sizes: tuple[int, ...]
    """Tokens a row that one call may feed, each a graph of its own; fewer are padded to the next size."""
    capacity: int
    """Positions of the cache: prompt, new tokens, a whole draft and the largest size must fit."""
    n_rows: int = 1
    """Rows of the batch; fewer are padded."""


def make_stepper(
    model: PreTrainedModel,
    runtime: Runtime = "eager",
    *,
    ids: Tensor | None = None,
    shapes: Shapes | None = None,
    reads: Sequence[int] = (),
    progress: Callable[[int], None] = lambda n: None,
) -> Stepper:
    """Make ``model`` ready, with a head over ``ids`` [V'] only if given.

    ``packed`` replaces the model's linear layers in place. ``compiled`` needs ``shapes`` and compiles them all
    now; ``progress`` is told of each finished one; its graphs give the states of the layers in ``reads`` too, which
    the other runtimes give to whoever asks. Raises ValueError for an encoder-decoder model (T5 derives
    its positions from one scalar length, which would be a constant of the graph).
    """
    head = head_of(model, ids)
    if runtime == "eager":
        return Stepper(model, head)
    if runtime == "packed":
        pack_linears(model)
        return Stepper(model, pack_head(head_of(model, ids)), runtime=runtime)
    if shapes is None:
        raise ValueError("a compiled step needs its static shapes")
    if model.config.is_encoder_decoder:
        raise ValueError("encoder-decoder models cannot be compiled; use the eager or packed runtime")
    compiled = CompiledStep(model, head, shapes, reads)
    compiled.compile(progress)
    return Stepper(model, head, compiled, runtime)


class Graphs:
    """One traced step over one static cache: a graph for each number of tokens that a call feeds."""

    def __init__(self, step: nn.Module, cache: RowCache, shapes: Shapes, device: torch.device) -> None:
        self.step, self.cache, self.shapes, self.device = step.eval(), cache, shapes, device
        self.graphs = {size: compile_step(self.step, device) for size in sorted(set(shapes.sizes))}
        self.most = max(self.graphs)

    @torch.inference_mode()
    def compile(self, feed: Callable[[int], object], progress: Callable[[int], None]) -> None:
        """Compile every size by feeding it; each runs twice, for CUDA graphs are recorded in the second run.

        The cache's buffers are there already.
        """
        for buffer in chain(*self._buffers()):
            torch._dynamo.mark_static_address(buffer)
        for size in self.graphs:
            trace(lambda size=size: feed(size), self.device, size * self.shapes.n_rows)  # type: ignore[misc]
            progress(1)

    def __call__(self, lengths: Sequence[int], ids: Tensor, *beside: Tensor) -> Any:
        """What the step gives for ids [B, n] at the rows' ``lengths``, n at most :attr:`most`, rows padded.

        ``beside`` are further inputs [B], or [B, n, ...].
        """
        size = next(size for size in self.graphs if size >= ids.shape[1])
        starts = [*lengths, *[0] * (self.shapes.n_rows - len(lengths))]
        positions = to_device(starts, self.device).unsqueeze(1) + torch.arange(size, device=self.device)
        padded = [self._padded(each, size) for each in (ids, *beside)]
        if self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        return self.graphs[size](*padded, positions, *self._buffers())

    def require(self, n_rows: int, n_positions: int) -> None:
        """Raise ValueError where a request of ``n_positions``, and the padding of its last call, do not fit."""
        if n_rows > self.shapes.n_rows:
            raise ValueError(f"compiled for batches of {self.shapes.n_rows}, not {n_rows}")
        needed = n_positions + self.most
        if needed > self.shapes.capacity:
            raise ValueError(f"compiled for {self.shapes.capacity} positions, {needed} are needed")

    def _padded(self, given: Tensor, size: int) -> Tensor:
        """Never a view: other strides would compile another graph."""
        padded = given.new_zeros(*(self.shapes.n_rows, size)[: given.dim()], *given.shape[2:])
        padded[tuple(slice(n) for n in given.shape)] = given
        return padded

    def _buffers(self) -> tuple[list[Tensor], list[Tensor]]:
        layers = self.cache.rows_of_layers
        return [layer.keys for layer in layers], [layer.values for layer in layers]


class CompiledStep:
    """Steps of one model over one static cache. Requests take turns: the cache is the last one's."""

    def __init__(self, model: PreTrainedModel, head: Head, shapes: Shapes, reads: Sequence[int] = ()) -> None:
        self.shapes, self.model, self.reads = shapes, model, tuple(reads)
        read_for_good(model, self.reads)  # a graph is compiled again where a layer's hooks change
        self.cache = RowCache(len(decoder_layers(model)), shapes.n_rows, shapes.capacity)
        self.graphs = Graphs(_Step(model, head, shapes.capacity, self.reads), self.cache, shapes, model.device)

    @torch.inference_mode()
    def compile(self, progress: Callable[[int], None]) -> None:
        """Trace and compile every size."""
        self._allocate()
        self.graphs.compile(lambda size: self(self._blank(size), [0]), progress)

    def __call__(self, ids: Tensor, lengths: Sequence[int]) -> tuple[Tensor, States]:
        """Feed ids [B, n] at the rows' ``lengths``; returns the logits [B, n, V], and the states that it reads.

        Lengths are the caller's. More tokens than the largest size take several calls.
        """
        most = self.graphs.most
        if ids.shape[1] > most:
            logits, states = self(ids[:, :most], lengths)
            first = logits.clone(), {place: each.clone() for place, each in states.items()}
            return _joined(first, self(ids[:, most:], [length + most for length in lengths]))
        n_rows, n = ids.shape
        with attention_for(self.model, masked=True):
            logits, given = self.graphs(lengths, ids)
        states = {place: each[:n_rows, :n] for place, each in zip(self.reads, given, strict=True)}
        return logits[:n_rows, :n], states

    def require(self, n_rows: int, n_positions: int, reads: Sequence[int] = ()) -> None:
        """As :meth:`Graphs.require`, and where states are asked for that the graphs do not give."""
        if missing := set(reads) - set(self.reads):
            raise ValueError(
                f"compiled without the states of layers {sorted(missing)}: give make_stepper `reads`"
            )
        self.graphs.require(n_rows, n_positions)

    def _blank(self, size: int) -> Tensor:
        return torch.zeros(self.shapes.n_rows, size, dtype=torch.long, device=self.model.device)

    def _allocate(self) -> None:
        """Let one eager call make the buffers in the model's own shapes."""
        positions = self.cache.begin(1, self.model.device)
        with attention_for(self.model, masked=True):
            self.model.get_decoder()(
                input_ids=self._blank(1), position_ids=positions, past_key_values=self.cache, use_cache=True
            )


def _joined(first: tuple[Tensor, States], then: tuple[Tensor, States]) -> tuple[Tensor, States]:
    """Two calls' outputs as one. A CUDA graph's live until its next run: the first ones are copies."""
    states = {place: torch.cat([first[1][place], then[1][place]], 1) for place in then[1]}
    return torch.cat([first[0], then[0]], 1), states


class _Step(nn.Module):
    """What is traced: embed, attend over the whole cache under a mask, apply the head."""

    def __init__(self, model: PreTrainedModel, head: Head, capacity: int, reads: Sequence[int] = ()) -> None:
        super().__init__()
        self.decoder, self.reads = model.get_decoder(), reads
        self.weight = nn.Parameter(head.weight.detach(), requires_grad=False)
        self.bias = None if head.bias is None else nn.Parameter(head.bias.detach(), requires_grad=False)
        self.head, self.capacity, self.dtype = head, capacity, model.dtype
        self.last = min(capacity, context_limit(model) or capacity) - 1

    def forward(
        self, ids: Tensor, positions: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """ids, positions [B, n]; keys, values [B, heads, capacity, d] a layer, written in place.

        Returns the logits [B, n, V], and the states [B, n, h] of each layer in ``reads``.
        """
        places = torch.arange(self.capacity, device=ids.device).unsqueeze(0)
        allowed = places.unsqueeze(1) <= positions.unsqueeze(2)
        masks = attention_masks(self.decoder.config, allowed, positions, places, self.dtype)
        cache = StaticCache(positions, keys, values)
        hidden = self.decoder(
            input_ids=ids,
            attention_mask=masks,
            position_ids=positions.clamp(max=self.last),  # beyond the context there is only padding
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits = self.head.cap(functional.linear(hidden * self.head.scale, self.weight, self.bias))
        return logits, [cache.states[place] for place in self.reads]


class StaticCache(Cache):
    """The cache while a step is traced, and the states that are read."""

    def __init__(self, positions: Tensor, keys: list[Tensor], values: list[Tensor]) -> None:
        layers: list[Any] = [_StaticLayer(k, v, positions) for k, v in zip(keys, values, strict=True)]
        super().__init__(layers=layers)
        self.states: States = {}


class _StaticLayer(CacheLayerMixin):
    """One layer of the cache while a step is traced."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.positions = keys, values, positions
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The buffers are there already."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write [B, heads, n, d] at the rows' positions; return the whole buffers."""
        rows = torch.arange(self.positions.shape[0], device=self.positions.device).unsqueeze(1)
        self.keys[rows, :, self.positions] = key_states.transpose(1, 2)
        self.values[rows, :, self.positions] = value_states.transpose(1, 2)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All positions, from the first."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Never needed: positions and masks are given."""
        return 0

    def get_max_length(self) -> int:
        """Positions that can be held."""
        return self.keys.shape[2]
