"""Aligning a sliced student in closed form, before any gradient step.

Cutting layers out of a teacher leaves a gap: the layer above it gets hidden states that it has never seen.
Each MLP below a gap ends in a linear map, so the map that comes closest to what the next kept layer expects is
a ridge regression. On SmolLM2-135M, layers [0, 1, 28, 29], this takes the acceptance rate from 0.004 to 0.30.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specalign.errors import UserError
from specalign.models.heads import hidden_states
from specalign.models.properties import decoder_layers

Batch = tuple[Tensor, ...]
"""(input_ids, attention_mask) [B, T], right-padded; then the decoder's two, where there is an encoder."""

LINEAR_MAPS = ("mlp.down_proj", "layer.2.DenseReluDense.wo")
"""Where a layer's MLP ends: Llama and its kin, T5's decoder."""
NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")
"""What some families put behind it: Gemma 2 and 3, OLMo 2; GLM 4."""


@dataclass(frozen=True)
class Refit:
    """One refitted layer: weighted mean squared error relative to what it had to add, before and after."""

    layer: int
    error_before: float
    error_after: float


@dataclass(frozen=True)
class _End:
    """The end of a layer: the MLP's last linear map and, in some families, an RMS norm of its result."""

    layer: nn.Module
    linear: nn.Linear
    norm: nn.Module | None

    @property
    def added(self) -> nn.Module:
        """The module whose result is added to the residual stream."""
        return self.linear if self.norm is None else self.norm


@dataclass(frozen=True)
class _Samples:
    """The unpadded tokens of one batch, in float64."""

    inner: Tensor
    """a [n, f]: input of the linear map."""
    mapped: Tensor
    """[n, d]: its result."""
    added: Tensor
    """[n, d]: what the layer adds, without the map's bias, which is not refitted."""
    wanted: Tensor
    """b [n, d]: what it should add."""
    weight: Tensor
    """w [n, 1]."""


@dataclass
class _Sums:
    """Sufficient statistics of a weighted regression of b on a, and the present error."""

    gram: Tensor
    """[f, f] sum of w a a'."""
    cross: Tensor
    """[f, d] sum of w a b'."""
    size: Tensor
    """Sum of w |b|^2."""
    error: Tensor
    """Sum of w |added - b|^2."""


@torch.no_grad()
def align_slice(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layers: Sequence[int],
    batches: Iterable[Batch],
    *,
    ridge: float = 1e-3,
    progress: Callable[[], None] = lambda: None,
) -> list[Refit]:
    """Refit, in place and in order, the MLP output of the student's layer below each gap and of its last layer.

    ``student`` is ``slice_layers(teacher, layers)``. With a the input of the MLP's last linear map, r the
    residual stream beside it and t what the teacher has there (the input of the next kept layer; at the end its
    last hidden state before the final norm), W minimises

        sum over tokens of w |W a - b|^2  +  ridge * mean(diag(G)) * |W|^2

    with b = t - r, w = 1 / |t|^2, G = sum of w a a'. Where an RMS norm follows the map (Gemma 2 and 3), the layer
    adds gain * W a / rms(W a): W is fitted to the direction b / rms(b), weighted by w rms(b)^2, and then the gain
    of each channel by least squares; where both together do not lower the error, the layer is left as it was.

    Each fit sees the activations of the student as refitted so far. Accumulated and solved in float64. The
    teacher's states are kept between the fits: 4 bytes x hidden size per token and fit. ``progress`` is called
    once a batch and fit, and once a batch for the teacher. Raises UserError for an architecture whose layers do
    not end in such a sum.
    """
    stack, places = decoder_layers(student), _places(layers, len(decoder_layers(teacher)))
    ends = [_end(stack[place], student) for place in places]
    data = []
    for batch in batches:
        data.append((batch, _teacher_states(teacher, batch, layers, places)))
        progress()
    assert data, "no batches"
    refits = []
    for index, (place, end) in enumerate(zip(places, ends, strict=True)):
        _require_sum(student, end, data[0][0])
        stream = _Stream(student, end, [(batch, states[index]) for batch, states in data])
        refits.append(_refit(stream, layers[place], ridge, progress))
    return refits


def n_passes(layers: Sequence[int], n_layers: int) -> int:
    """How often :func:`align_slice` calls ``progress`` for each batch: once for the teacher, once a fit."""
    return 1 + len(_places(layers, n_layers))


@dataclass(frozen=True)
class _Stream:
    """The samples of one fit, computed anew with the present weights whenever they are iterated."""

    student: PreTrainedModel
    end: _End
    data: list[tuple[Batch, Tensor]]

    def __iter__(self) -> Iterator[_Samples]:
        for batch, states in self.data:
            yield _samples(self.student, self.end, batch, states)


def _places(layers: Sequence[int], n_layers: int) -> list[int]:
    """Positions in the student of the layers to refit: those below a gap, and then the last one."""
    gaps = [place for place in range(len(layers) - 1) if layers[place + 1] != layers[place] + 1]
    return [*gaps, len(layers) - 1] if gaps else []


def _end(layer: nn.Module, student: PreTrainedModel) -> _End:
    modules = dict(layer.named_modules())
    linear = next((modules[name] for name in LINEAR_MAPS if name in modules), None)
    norm = next((modules[name] for name in NORMS if name in modules), None)
    if not isinstance(linear, nn.Linear) or (norm is not None and linear.bias is not None):
        raise _not_refittable(student)
    return _End(layer, linear, norm)


def _not_refittable(student: PreTrainedModel) -> UserError:
    return UserError(f'a sliced {type(student).__name__} cannot be aligned in closed form; use start = "slice"')


def _require_sum(student: PreTrainedModel, end: _End, batch: Batch) -> None:
    """Raise UserError unless the layer's output without what the MLP adds is its output minus that.

    Granite, for one, multiplies it first. Tried on the first sequence of ``batch``.
    """
    first = tuple(tensor[:1] for tensor in batch)
    whole = _caught(student, first, (end.layer, end.added))
    silent = end.added.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    try:
        rest = _caught(student, first, (end.layer,))
    finally:
        silent.remove()
    output, added = whole[end.layer][1], whole[end.added][1]
    error = (output - added - rest[end.layer][1]).abs().max()
    if error > 1e-3 * output.abs().max():
        raise _not_refittable(student)


@contextmanager
def _outputs(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """Catch (first input, output) of each module while the context lasts."""
    caught: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def catch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        caught[module] = (inputs[0], output if isinstance(output, Tensor) else output[0])

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(catch).remove)
        yield caught


def _caught(
    model: PreTrainedModel, batch: Batch, modules: Iterable[nn.Module]
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """(First input, output) of each module in one forward pass of the decoder."""
    names = ("input_ids", "attention_mask", "decoder_input_ids")  # padding on the right needs no fourth
    inputs: dict[str, Any] = dict(zip(names, batch, strict=False))
    with _outputs(modules) as caught:
        hidden_states(model, **inputs)
    return caught


def _teacher_states(
    teacher: PreTrainedModel, batch: Batch, layers: Sequence[int], places: list[int]
) -> list[Tensor]:
    """For each refit the teacher's hidden states [n, d] at the unpadded tokens."""
    stack = decoder_layers(teacher)
    sources = [stack[layers[place + 1] - 1 if place + 1 < len(layers) else -1] for place in places]
    caught = _caught(teacher, batch, sources)
    return [caught[source][1][batch[-1].bool()] for source in sources]


def _samples(student: PreTrainedModel, end: _End, batch: Batch, states: Tensor) -> _Samples:
    caught = _caught(student, batch, {end.layer, end.linear, end.added})
    kept = batch[-1].bool()
    inner, mapped = caught[end.linear]
    mapped, added, output = (x[kept].double() for x in (mapped, caught[end.added][1], caught[end.layer][1]))
    residual, target = output - added, states.double()
    if end.linear.bias is not None:
        added, residual = added - end.linear.bias, residual + end.linear.bias
    weight = target.square().sum(-1, keepdim=True).clamp(min=1e-24).reciprocal()
    return _Samples(inner[kept].double(), mapped, added, target - residual, weight)


def _refit(stream: _Stream, layer: int, ridge: float, progress: Callable[[], None]) -> Refit:
    linear, norm = stream.end.linear, stream.end.norm
    sums: _Sums | None = None
    for samples in stream:
        sums = _accumulate(sums, samples, directions=norm is not None)
        progress()
    assert sums is not None
    old = linear.weight.clone()
    solution = _solve(sums, ridge)
    linear.weight.copy_(solution.T)
    before = float(sums.error / sums.size)
    if norm is None:
        return Refit(layer, before, _error(solution, sums))
    gain, after = _fit_gain(stream)
    if after >= before:
        linear.weight.copy_(old)
        return Refit(layer, before, before)
    _set_gain(norm, gain)
    return Refit(layer, before, after)


def _accumulate(sums: _Sums | None, samples: _Samples, directions: bool) -> _Sums:
    """Add a batch; with ``directions``, b / rms(b) is regressed, with weights w rms(b)^2."""
    scale = samples.weight.sqrt()
    a, b = samples.inner * scale, samples.wanted * scale
    if directions:
        a = a * _rms(samples.wanted)
    error = (samples.weight * (samples.added - samples.wanted).square()).sum()
    new = _Sums(a.T @ a, a.T @ b, b.square().sum(), error)
    if sums is None:
        return new
    sums.gram += new.gram
    sums.cross += new.cross
    sums.size += new.size
    sums.error += new.error
    return sums


def _solve(sums: _Sums, ridge: float) -> Tensor:
    """[f, d]: W transposed."""
    damped = sums.gram.clone()
    damped.diagonal().add_(ridge * sums.gram.diagonal().mean())
    return torch.linalg.solve(damped, sums.cross)


def _error(solution: Tensor, sums: _Sums) -> float:
    """Sum of w |W a - b|^2 from the sums alone, over the sum of w |b|^2."""
    total = sums.size - 2 * (solution * sums.cross).sum() + (solution * (sums.gram @ solution)).sum()
    return float(total / sums.size)


def _fit_gain(stream: _Stream) -> tuple[Tensor, float]:
    """The gain [d] of each channel that fits best with the present W, and the relative error that is left."""
    square, product, size = torch.zeros(3, dtype=torch.float64)
    for samples in stream:
        unit, w = samples.mapped / _rms(samples.mapped), samples.weight
        square = square + (w * unit.square()).sum(0)
        product = product + (w * unit * samples.wanted).sum(0)
        size = size + (w * samples.wanted.square()).sum()
    gain = product / square.clamp(min=1e-24)
    return gain, float((size - (gain * product).sum()) / size)


def _set_gain(norm: nn.Module, gain: Tensor) -> None:
    """Make ``norm`` multiply by ``gain``: some families store it, Gemma what it exceeds 1 by."""
    weight = norm.get_parameter("weight")
    offset = (norm(torch.ones_like(weight)) - weight).round()
    weight.copy_(gain - offset)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
