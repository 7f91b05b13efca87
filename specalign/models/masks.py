"""Explicit attention masks, in the form that each architecture takes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig

Masks = Tensor | dict[str, Tensor]


def attention_masks(
    config: PreTrainedConfig, allowed: Tensor, queries: Tensor, keys: Tensor, dtype: torch.dtype
) -> Masks:
    """Masks for attention from tokens at positions ``queries`` [B, Q] to tokens at ``keys`` [B or 1, K].

    ``allowed`` [B, Q, K] (bool) says who may see whom without windows; with one, a token sees the last
    ``sliding_window`` positions, its own included. Returns [B, 1, Q, K]: boolean, or additive in ``dtype`` for
    eager attention; where layers with sliding windows and full attention mix, a dict by layer type. A model
    without layer types but with a window (Mistral) has it in every layer.
    """
    eager = config._attn_implementation == "eager"
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    full = _mask(allowed, eager, dtype)
    if not window or (kinds and "sliding_attention" not in kinds):
        return full
    sliding = _mask(allowed & (keys.unsqueeze(1) > queries.unsqueeze(2) - window), eager, dtype)
    return {"full_attention": full, "sliding_attention": sliding} if kinds else sliding


def _mask(allowed: Tensor, eager: bool, dtype: torch.dtype) -> Tensor:
    allowed = allowed.unsqueeze(1)
    if not eager:
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
