"""A student cut out of its teacher: some of its layers, the rest copied."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from specalign.errors import UserError
from specalign.models.heads import head_of, hidden_states
from specalign.models.probe import attempted, decoder_probe_ids, largest_gap, name_of, probe_ids
from specalign.models.properties import Tower, tower_layers

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2}
"""Of the largest logit, between a slice and the teacher's own layers; 0.1 in coarser types."""
COUNTS: dict[Tower, tuple[str, ...]] = {
    "encoder": ("encoder_layers", "num_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}
"""Where encoder-decoder configs state the number of layers: BART and its kin, T5 and its kin."""
INDICES = re.compile(r"layers$|layer_(ids|idxs?|indices)$")
"""Names of lists that may hold indices of layers."""


def choose_layers(n_layers: int, n_keep: int, how: Literal["ends", "even"] = "ends") -> tuple[int, ...]:
    """Which ``n_keep`` of ``n_layers`` layers to keep; the first and the last always are (n_keep >= 2).

    ``ends``: the first half from the bottom, the rest from the top ([0, 1, 28, 29] of 30). ``even``: spread.
    """
    if not 2 <= n_keep <= n_layers:
        raise UserError(f"cannot keep {n_keep} of the teacher's {n_layers} layers: choose 2 to {n_layers}")
    if how == "even":
        return tuple(round(i * (n_layers - 1) / (n_keep - 1)) for i in range(n_keep))
    below = (n_keep + 1) // 2
    return (*range(below), *range(n_layers - (n_keep - below), n_layers))


def require_layers(layers: Sequence[int], n_layers: int) -> None:
    """Raise UserError unless ``layers`` rises strictly from 0 to the last of ``n_layers``."""
    chosen = list(layers)
    if chosen != sorted(set(chosen)) or not chosen or (chosen[0], chosen[-1]) != (0, n_layers - 1):
        raise UserError(f"layers must rise from 0 to {n_layers - 1}, the first and the last kept, not {chosen}")


@torch.no_grad()
def slice_layers(
    teacher: PreTrainedModel, layers: Sequence[int], encoder_layers: Sequence[int] | None = None
) -> PreTrainedModel:
    """A model of the teacher's class with only ``layers`` of its (decoder) stack, weights copied.

    An encoder-decoder model keeps its whole encoder, or ``encoder_layers`` of it. Layer types (sliding, full)
    follow their layers. Weights have the teacher's dtype; buffers are those of the checkpoint that is saved.
    Raises UserError unless both rise strictly from 0 to the stack's last layer, and where the slice would not
    compute what the teacher's own layers do: families whose layers follow a pattern that the config tells otherwise
    than by lists with an entry, or an index, a layer.
    """
    chosen: dict[Tower, list[int]] = {"decoder": list(layers)}
    if encoder_layers is not None:
        chosen["encoder"] = list(encoder_layers)
    for tower, kept in chosen.items():
        require_layers(kept, len(tower_layers(teacher, tower)))
    try:
        student = _copied(teacher, chosen)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise _unsliceable(teacher, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    student.to(teacher.device)  # type: ignore[arg-type]
    student.eval()
    _require_teachers_layers(student, teacher, chosen)
    return student


def _copied(teacher: PreTrainedModel, chosen: Mapping[Tower, list[int]]) -> PreTrainedModel:
    """The slice, unchecked."""
    student = type(teacher)(_sliced_config(teacher, chosen))
    weights = _sliced_weights(teacher, chosen)
    for name, parameter in student.named_parameters():
        # Buffers stay as the class computes them: RoPE frequencies or an embedding's scale, rounded to half
        # precision and stored nowhere, would make the trained model another one than the saved one.
        parameter.data = parameter.data.to(weights[name].dtype)
    student.load_state_dict(weights)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student


def _unsliceable(teacher: PreTrainedModel, reason: str) -> UserError:
    return UserError(
        f"a {type(teacher).__name__} cannot be sliced at these layers ({reason}); name an existing drafter "
        "(student.model)"
    )


def _require_teachers_layers(
    student: PreTrainedModel, teacher: PreTrainedModel, chosen: Mapping[Tower, list[int]]
) -> None:
    """Raise UserError unless the slice's logits are those of the teacher with its other layers skipped."""
    inputs = {"input_ids": probe_ids(teacher)}
    if teacher.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = decoder_probe_ids(teacher)
    who = name_of(teacher)
    ours = attempted(who, student, lambda: head_of(student)(hidden_states(student, **inputs)))
    with _skipping(teacher, chosen):
        own = attempted(who, teacher, lambda: head_of(teacher)(hidden_states(teacher, **inputs)))
    gap = largest_gap(ours, own)
    if not gap <= TOLERANCE.get(own.dtype, 0.1):
        raise _unsliceable(
            teacher, f"its logits would differ from those of the teacher's own layers by {gap:.1%}"
        )


@contextmanager
def _skipping(teacher: PreTrainedModel, chosen: Mapping[Tower, list[int]]) -> Iterator[None]:
    """Let the other layers hand on what they were given."""

    def hand_on(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    with ExitStack() as stack:
        for tower, kept in chosen.items():
            for place, layer in enumerate(tower_layers(teacher, tower)):
                if place not in kept:
                    stack.callback(layer.register_forward_hook(hand_on, with_kwargs=True).remove)
        yield


def _sliced_config(teacher: PreTrainedModel, chosen: Mapping[Tower, list[int]]) -> PreTrainedConfig:
    config = copy.deepcopy(teacher.config)
    if config.is_encoder_decoder:
        for tower, layers in chosen.items():
            name = next(name for name in COUNTS[tower] if hasattr(config, name))
            setattr(config, name, len(layers))
        return config
    text, layers = config.get_text_config(), chosen["decoder"]
    n_layers = len(tower_layers(teacher, "decoder"))
    text.num_hidden_layers = len(layers)
    for name, value in list(vars(text).items()):
        cut = _cut(name, value, layers, n_layers)
        if cut is not None:
            setattr(text, name, cut)
    return config


def _cut(name: str, value: object, layers: Sequence[int], n_layers: int) -> list[Any] | None:
    """What a list of the config becomes with ``layers`` only; None where it is not about layers.

    It has an entry a layer (``layer_types``, ``no_rope_layers``), or the indices of some (``mlp_only_layers``).
    """
    if not isinstance(value, (list, tuple)) or "token" in name or name == "architectures":
        return None
    rising = all(type(place) is int for place in value) and list(value) == sorted(set(value))
    indices = rising and bool(INDICES.search(name))
    if len(value) == n_layers and not indices:
        return [value[layer] for layer in layers]
    if indices and value and value[0] >= 0 and value[-1] < n_layers:
        return [place for place, layer in enumerate(layers) if layer in value]
    return None


def _sliced_weights(teacher: PreTrainedModel, chosen: Mapping[Tower, list[int]]) -> dict[str, torch.Tensor]:
    weights = dict(teacher.state_dict())
    for tower, layers in chosen.items():
        weights = _moved(weights, _prefix(teacher, tower), layers)
    return weights


def _moved(weights: dict[str, torch.Tensor], prefix: str, layers: list[int]) -> dict[str, torch.Tensor]:
    """The weights with only ``layers`` below ``prefix``, numbered anew."""
    place = {layer: index for index, layer in enumerate(layers)}
    kept = {}
    for name, tensor in weights.items():
        if not name.startswith(prefix):
            kept[name] = tensor
            continue
        layer, _, rest = name.removeprefix(prefix).partition(".")
        if int(layer) in place:
            kept[f"{prefix}{place[int(layer)]}.{rest}"] = tensor
    return kept


def _prefix(teacher: PreTrainedModel, tower: Tower) -> str:
    stack = tower_layers(teacher, tower)
    return next(name for name, module in teacher.named_modules() if module is stack) + "."
