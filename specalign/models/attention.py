"""Where FlashAttention 2 can run: in half precision, and without a mask of one's own between tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from transformers import PreTrainedModel

FLASH: Literal["flash_attention_2"] = "flash_attention_2"
HALF = (torch.float16, torch.bfloat16)


@contextmanager
def attention_for(model: PreTrainedModel, *, masked: bool) -> Iterator[None]:
    """Let ``model`` attend by sdpa while the context lasts, where it has flash_attention_2 and that cannot serve.

    Its kernels know padding and causality only, not the masks between single tokens (``masked``) by which rows of
    different lengths decode together and branches share a trunk; and they take half precision alone.
    """
    config = getattr(model.get_decoder(), "config", model.config)  # ModernBERT's "decoder" is its head
    if config._attn_implementation != FLASH or (not masked and compute_dtype(model) in HALF):
        yield
        return
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = FLASH


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """What its matrix products are computed in: its own dtype, or autocast's."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
