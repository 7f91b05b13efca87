"""A student cut out of its teacher: some of its layers, the rest copied."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from specalign.errors import UserError
from specalign.models.properties import Tower, tower_layers


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
    Raises UserError unless both rise strictly from 0 to the stack's last layer.
    """
    chosen: dict[Tower, list[int]] = {"decoder": list(layers)}
    if encoder_layers is not None:
        chosen["encoder"] = list(encoder_layers)
    for tower, kept in chosen.items():
        require_layers(kept, len(tower_layers(teacher, tower)))
    student = type(teacher)(_sliced_config(teacher, chosen))
    weights = _sliced_weights(teacher, chosen)
    for name, parameter in student.named_parameters():
        # Buffers stay as the class computes them: RoPE frequencies or an embedding's scale, rounded to half
        # precision and stored nowhere, would make the trained model another one than the saved one.
        parameter.data = parameter.data.to(weights[name].dtype)
    student.load_state_dict(weights)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    student.to(teacher.device)  # type: ignore[arg-type]
    return student.eval()


def _sliced_config(teacher: PreTrainedModel, chosen: Mapping[Tower, list[int]]) -> PreTrainedConfig:
    config = copy.deepcopy(teacher.config)
    if config.is_encoder_decoder:
        config.num_decoder_layers = len(chosen["decoder"])
        if "encoder" in chosen:
            config.num_layers = len(chosen["encoder"])
        return config
    text, layers = config.get_text_config(), chosen["decoder"]
    text.num_hidden_layers = len(layers)
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[layer] for layer in layers]
    return config


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
