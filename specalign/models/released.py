"""A model whose head and config remain, and whose other weights are given back: all that logits of kept states need."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel


def release(model: PreTrainedModel) -> None:
    """Give the memory of all weights but the output head's back, in place. A head that is tied stays as it is."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if module is head:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(parameter.to("meta"), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to("meta"), persistent=False)


def is_released(model: PreTrainedModel) -> bool:
    """Whether it can compute no states any more."""
    return any(parameter.is_meta for parameter in model.get_decoder().parameters())


def take_head(model: PreTrainedModel, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give a released model the output head that it was saved with."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(weight, requires_grad=False)
    head.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
