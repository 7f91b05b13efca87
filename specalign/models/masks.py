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

    ``allowed`` [B, Q, K] (bool) says who may see whom without windows. Returns [B, 1, Q, K]: boolean, or
    additive in ``dtype`` for eager attention; where layers with sliding windows and full attention mix, a dict
    by layer type.
    """
    eager = config._attn_implementation == "eager"
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return _mask(allowed, eager, dtype)
    near = keys.unsqueeze(1) > queries.unsqueeze(2) - config.sliding_window
    return {
        "full_attention": _mask(allowed, eager, dtype),
        "sliding_attention": _mask(allowed & near, eager, dtype),
    }


def _mask(allowed: Tensor, eager: bool, dtype: torch.dtype) -> Tensor:
    allowed = allowed.unsqueeze(1)
    if not eager:
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
