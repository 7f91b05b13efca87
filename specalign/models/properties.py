"""Facts about a model that training and decoding need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from specalign.errors import UserError

Tower = Literal["encoder", "decoder"]
"""Decoder-only models have the second one."""


def eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Ids that end a sequence: the generation config's, else the model config's; may be empty."""
    for config in (model.generation_config, model.config.get_text_config()):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return tuple(found) if isinstance(found, (list, tuple)) else (found,)
    return ()


def add_end(model: PreTrainedModel, id_: int | None) -> None:
    """Let texts of ``model`` end at one more token: the one that its chat template ends turns with."""
    ends = eos_ids(model)
    if id_ is not None and id_ not in ends and model.generation_config is not None:
        model.generation_config.eos_token_id = [*ends, id_] if ends else id_


def decoder_start_id(model: PreTrainedModel) -> int:
    """The token that an encoder-decoder model's decoder starts from."""
    for config in (model.generation_config, model.config):
        found = getattr(config, "decoder_start_token_id", None)
        if found is not None:
            return found
    raise ValueError(f"{type(model).__name__} names no decoder_start_token_id")


@dataclass(frozen=True)
class PositionScaling:
    """Positions that are scaled by the length so far: beyond ``original`` every position means something else."""

    kind: str
    """``longrope`` or ``dynamic``, as the config calls it."""
    original: int
    """Tokens up to which nothing is scaled by the length."""


def position_scaling(config: PreTrainedConfig) -> PositionScaling | None:
    """How the positions depend on the length of the text; None where they do not (also linear, yarn, llama3).

    LongRoPE (arXiv:2402.13753) takes other frequencies for *all* tokens of a call that reaches beyond the original
    context, dynamic NTK ever new ones, so that keys in a cache and the other rows of a batch go stale.
    """
    text = config.get_text_config()
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    tables = [found, *(table for table in found.values() if isinstance(table, dict))]
    for table in tables:
        kind = str(table.get("rope_type", table.get("type", "")))
        if kind in ("longrope", "su") or "dynamic" in kind:
            original = None
            if "dynamic" not in kind:
                original = table.get("original_max_position_embeddings")
                original = original or getattr(text, "original_max_position_embeddings", None)
            return PositionScaling(kind, original or text.max_position_embeddings)
    return None


def context_limit(model: PreTrainedModel) -> int | None:
    """Longest (decoder) sequence that the model's positions allow; None where they are relative (T5).

    Where they are scaled by the length so far, that is the context in which they are not.
    """
    config = model.config.get_text_config()
    limit: int | None = getattr(config, "max_position_embeddings", None)
    scaling = position_scaling(config)
    if limit is None or scaling is None:
        return limit
    return min(limit, scaling.original)


def require_unscaled(model: PreTrainedModel, n_tokens: int) -> None:
    """Raise UserError where ``n_tokens`` reach beyond the length up to which positions are not scaled by it.

    A text that ends with the context itself needs no refusal: it ends there, as with any model.
    """
    scaling = position_scaling(model.config)
    advertised = getattr(model.config.get_text_config(), "max_position_embeddings", 0)
    if scaling and scaling.original < min(n_tokens, advertised):
        raise UserError(
            f"{type(model).__name__} scales its positions by the length of the text ({scaling.kind}) beyond "
            f"{scaling.original} tokens, and {n_tokens} are asked for: outputs would be wrong; keep prompt and "
            f"new tokens together within {scaling.original}"
        )


def tower_layers(model: PreTrainedModel, tower: Tower) -> nn.ModuleList:
    """The transformer blocks of one stack: its longest list of modules. Raises UserError where it has none."""
    stack = model.get_decoder() if tower == "decoder" else model.get_encoder()
    lists = [child for child in stack.children() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise UserError(
            f"{type(model).__name__} is not supported by specalign: its {tower} has no list of layers"
        )
    return max(lists, key=len)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks of the (decoder) stack."""
    return tower_layers(model, "decoder")


def n_parameters(model: PreTrainedModel) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
