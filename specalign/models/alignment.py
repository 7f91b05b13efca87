"""Aligning a sliced student in closed form, before any gradient step.

Cutting layers out of a teacher leaves a gap: the layer above it gets hidden states that it has never seen.
Each MLP below a gap ends in a linear map, so the map that comes closest to what the next kept layer expects is
a ridge regression. On SmolLM2-135M, layers [0, 1, 28, 29], this takes the acceptance rate from 0.004 to 0.30.
ReplaceMe (Shopkhoev et al. 2025, arXiv:2505.02819) estimates a linear map in the place of a cut block in closed form
too, and merges it into the layer before; here each fit reads the states of the student as it is refitted so far.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from specalign.config import cache_dir
from specalign.errors import UserError
from specalign.models.heads import hidden_states
from specalign.models.properties import Tower, tower_layers
from specalign.models.regression import Samples, Sums, accumulate, fit_gain, relative_error, solve

Batch = tuple[Tensor, ...]
"""(input_ids, attention_mask) [B, T], right-padded; then the decoder's two, where there is an encoder."""

LINEAR_MAPS = ("mlp.down_proj", "layer.2.DenseReluDense.wo", "layer.1.DenseReluDense.wo")
"""Where a layer's MLP ends: Llama and its kin, T5's decoder, T5's encoder."""
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
    tower: Tower

    @property
    def added(self) -> nn.Module:
        """The module whose result is added to the residual stream."""
        return self.linear if self.norm is None else self.norm


@torch.no_grad()
def align_slice(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layers: Sequence[int],
    batches: Iterable[Batch],
    *,
    tower: Tower = "decoder",
    ridge: float = 1e-3,
    progress: Callable[[], None] = lambda: None,
) -> list[Refit]:
    """Refit, in place and in order, the MLP output of the student's layer below each gap and of its last layer.

    ``student`` is ``slice_layers(teacher, layers)``, and ``layers`` are those of one ``tower``. With a the input
    of the MLP's last linear map, r the residual stream beside it and t what the teacher has there (the input of
    the next kept layer; at the end its last hidden state before the final norm), W minimises

        sum over tokens of w |W a - b|^2  +  ridge * mean(diag(G)) * |W|^2

    with b = t - r, w = 1 / |t|^2, G = sum of w a a'. Where an RMS norm follows the map (Gemma 2 and 3), the layer
    adds gain * W a / rms(W a): W is fitted to the direction b / rms(b), weighted by w rms(b)^2, and then the gain
    of each channel by least squares; where both together do not lower the error, the layer is left as it was.

    Each fit sees the activations of the student as refitted so far. Accumulated and solved in float64. Memory
    does not grow with the data: the teacher's states wait for their fit in files of the cache folder (4 bytes x
    hidden size per token and fit in float32), which are deleted at the end. ``progress`` is called once a batch
    and fit, and once a batch for the teacher. Raises UserError for an architecture whose layers do not end in
    such a sum.
    """
    stack, places = tower_layers(student, tower), _places(layers)
    ends = [_end(stack[place], student, tower) for place in places]
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="alignment-", dir=cache_dir()) as scratch:
        data: list[tuple[Batch, Path]] = []
        for batch in batches:
            data.append((batch, Path(scratch) / f"{len(data)}.safetensors"))
            save_file(_teacher_states(teacher, batch, layers, places, tower), data[-1][1])
            progress()
        assert data, "no batches"
        refits = []
        for place, end in zip(places, ends, strict=True):
            _require_sum(student, end, data[0][0])
            refits.append(_refit(_Stream(student, end, str(place), data), layers[place], ridge, progress))
    return refits


def n_passes(layers: Sequence[int]) -> int:
    """How often :func:`align_slice` calls ``progress`` for each batch: once for the teacher, once a fit."""
    return 1 + len(_places(layers))


@dataclass(frozen=True)
class _Stream:
    """The samples of one fit, computed anew with the present weights whenever they are iterated."""

    student: PreTrainedModel
    end: _End
    key: str
    """Of the teacher's states for this fit, in each file."""
    data: list[tuple[Batch, Path]]

    def __iter__(self) -> Iterator[Samples]:
        for batch, path in self.data:
            with safe_open(path, framework="pt") as states:
                yield _samples(self.student, self.end, batch, states.get_tensor(self.key))


def _places(layers: Sequence[int]) -> list[int]:
    """Positions in the student of the layers to refit: those below a gap, and then the last one."""
    gaps = [place for place in range(len(layers) - 1) if layers[place + 1] != layers[place] + 1]
    return [*gaps, len(layers) - 1] if gaps else []


def _end(layer: nn.Module, student: PreTrainedModel, tower: Tower) -> _End:
    modules = dict(layer.named_modules())
    linear = next((modules[name] for name in LINEAR_MAPS if name in modules), None)
    norm = next((modules[name] for name in NORMS if name in modules), None)
    if not isinstance(linear, nn.Linear) or (norm is not None and linear.bias is not None):
        raise _not_refittable(student)
    return _End(layer, linear, norm, tower)


def _not_refittable(student: PreTrainedModel) -> UserError:
    return UserError(f'a sliced {type(student).__name__} cannot be aligned in closed form; use start = "slice"')


def _require_sum(student: PreTrainedModel, end: _End, batch: Batch) -> None:
    """Raise UserError unless the layer's output without what the MLP adds is its output minus that.

    Granite, for one, multiplies it first. Tried on the first sequence of ``batch``.
    """
    first = tuple(tensor[:1] for tensor in batch)
    whole = caught_states(student, first, (end.layer, end.added), end.tower)
    silent = end.added.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    try:
        rest = caught_states(student, first, (end.layer,), end.tower)
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


def caught_states(
    model: PreTrainedModel, batch: Batch, modules: Iterable[nn.Module], tower: Tower
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """(First input, output) of each module in one forward pass of the tower."""
    names = ("input_ids", "attention_mask", "decoder_input_ids")  # padding on the right needs no fourth
    inputs: dict[str, Any] = dict(zip(names, batch, strict=False))
    with _outputs(modules) as caught:
        if tower == "encoder":
            model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        else:
            hidden_states(model, **inputs)
    return caught


def kept_tokens(batch: Batch, tower: Tower) -> Tensor:
    """[B, T] True at the tower's unpadded tokens."""
    return (batch[1] if tower == "encoder" else batch[-1]).bool()


def _teacher_states(
    teacher: PreTrainedModel, batch: Batch, layers: Sequence[int], places: list[int], tower: Tower
) -> dict[str, Tensor]:
    """For each place of a refit the teacher's hidden states [n, d] at the unpadded tokens."""
    stack = tower_layers(teacher, tower)
    sources = {place: stack[layers[place + 1] - 1 if place + 1 < len(layers) else -1] for place in places}
    caught = caught_states(teacher, batch, sources.values(), tower)
    return {str(place): caught[source][1][kept_tokens(batch, tower)] for place, source in sources.items()}


def _samples(student: PreTrainedModel, end: _End, batch: Batch, states: Tensor) -> Samples:
    caught = caught_states(student, batch, {end.layer, end.linear, end.added}, end.tower)
    kept, place = kept_tokens(batch, end.tower), float64_device(student.device)

    def exact(tensor: Tensor) -> Tensor:
        return tensor.to(place).double()

    inner, mapped = (exact(tensor[kept]) for tensor in caught[end.linear])
    added, output = (exact(caught[module][1][kept]) for module in (end.added, end.layer))
    residual, target = output - added, exact(states)
    if end.linear.bias is not None:
        added, residual = added - exact(end.linear.bias), residual + exact(end.linear.bias)
    weight = target.square().sum(-1, keepdim=True).clamp(min=1e-24).reciprocal()
    return Samples(inner, mapped, added, target - residual, weight)


def float64_device(device: torch.device) -> torch.device:
    """Where to compute in float64: MPS has none, so the CPU for it."""
    return torch.device("cpu") if device.type == "mps" else device


def _refit(stream: _Stream, layer: int, ridge: float, progress: Callable[[], None]) -> Refit:
    linear, norm = stream.end.linear, stream.end.norm
    sums: Sums | None = None
    for samples in stream:
        sums = accumulate(sums, samples, directions=norm is not None)
        progress()
    assert sums is not None
    old = linear.weight.clone()
    solution = solve(sums, ridge)
    linear.weight.copy_(solution.T)
    before = float(sums.error / sums.size)
    if norm is None:
        return Refit(layer, before, relative_error(solution, sums))
    gain, after = fit_gain(stream)
    if after >= before:
        linear.weight.copy_(old)
        return Refit(layer, before, before)
    _set_gain(norm, gain)
    return Refit(layer, before, after)


def _set_gain(norm: nn.Module, gain: Tensor) -> None:
    """Make ``norm`` multiply by ``gain``: some families store it, Gemma what it exceeds 1 by."""
    weight = norm.get_parameter("weight")
    offset = (norm(torch.ones_like(weight)) - weight).round()
    weight.copy_(gain - offset.to(gain))
