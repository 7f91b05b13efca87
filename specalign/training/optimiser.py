"""AdamW, its parameter groups, and the learning rate as a function of the share of the budget that is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from specalign.training.config import OptimiserConfig
from specalign.training.distributed import world_size


def adamw(model: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) over the trainable parameters; norms, biases and embeddings do not decay.

    With ``config.sharded`` and several processes each of them updates its share of the parameters, whose moments it
    alone keeps, and sends them to the others (ZeRO stage 1, arXiv:1910.02054).
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
            (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "fused": True}
    if config.sharded and world_size() > 1:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # not in every build of torch

        return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, **settings)
    return torch.optim.AdamW(groups, **settings)


def gather_state(optimiser: torch.optim.Optimizer) -> None:
    """Bring a sharded optimiser's state to rank 0, which writes it; every process calls this."""
    if hasattr(optimiser, "consolidate_state_dict"):
        optimiser.consolidate_state_dict(to=0)


def rate(spent: float, config: OptimiserConfig) -> float:
    """The learning rate when the share ``spent`` (0..1) of the budget is spent: linear warm-up, then cosine."""
    spent = min(max(spent, 0.0), 1.0)
    if spent < config.warmup:
        return config.lr * spent / config.warmup
    phase = (spent - config.warmup) / (1 - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * phase)))


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients so that their joint norm is at most ``max_norm`` (0: leave them); return the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
