"""Facts about a model that training and decoding need."""

from __future__ import annotations

from typing import Literal

from torch import nn
from transformers import PreTrainedModel

Tower = Literal["encoder", "decoder"]
"""Decoder-only models have the second one."""


def eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Ids that end a sequence: the generation config's, else the model config's; may be empty."""
    for config in (model.generation_config, model.config.get_text_config()):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return tuple(found) if isinstance(found, (list, tuple)) else (found,)
    return ()


def decoder_start_id(model: PreTrainedModel) -> int:
    """The token that an encoder-decoder model's decoder starts from."""
    for config in (model.generation_config, model.config):
        found = getattr(config, "decoder_start_token_id", None)
        if found is not None:
            return found
    raise ValueError(f"{type(model).__name__} names no decoder_start_token_id")


def context_limit(model: PreTrainedModel) -> int | None:
    """Longest sequence that the model's positions allow; None where they are relative (T5)."""
    if model.config.is_encoder_decoder:
        return None
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def tower_layers(model: PreTrainedModel, tower: Tower) -> nn.ModuleList:
    """The transformer blocks of one stack."""
    stack = model.get_decoder() if tower == "decoder" else model.get_encoder()
    layers = getattr(stack, "layers", None)
    return layers if layers is not None else stack.block


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks of the (decoder) stack."""
    return tower_layers(model, "decoder")


def n_parameters(model: PreTrainedModel) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
