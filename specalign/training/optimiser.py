"""AdamW, its parameter groups, and the learning rate as a function of the step and the share of the budget spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from specalign.errors import UserError
from specalign.training.course_config import OptimiserConfig
from specalign.training.distributed import rank, world_size
from specalign.training.sharding import divided_like, gathered, is_sharded


def adamw(model: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) over the trainable parameters; norms, biases and embeddings do not decay.

    With ``config.sharded = "moments"`` and several processes each of them updates its share of the parameters, whose
    moments it alone keeps, and sends them to the others (ZeRO stage 1, arXiv:1910.02054). Groups hold the ``names`` of
    their parameters, in order.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    found: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and id(parameter) not in embeddings
            empty = {"params": [], "names": [], "weight_decay": config.weight_decay if decays else 0.0}
            group = found.setdefault((not decays, is_sharded(parameter)), empty)
            group["params"].append(parameter)
            group["names"].append(name)
    groups = [found[kind] for kind in sorted(found)]
    settings: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "fused": True}
    if config.sharded == "moments" and world_size() > 1:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # not in every build of torch

        return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, **settings)
    return torch.optim.AdamW(groups, **settings)


def gathered_state(optimiser: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Parameter name -> step and moments, whole, on rank 0, which writes them; every process calls this."""
    if hasattr(optimiser, "consolidate_state_dict"):
        optimiser.consolidate_state_dict(to=0)
        if rank() != 0:
            return {}
    names = parameter_names(optimiser)
    state: dict[str, dict[str, Tensor]] = {}
    for index, fields in optimiser.state_dict()["state"].items():
        for field, value in fields.items():
            tensor = gathered(value).cpu() if is_sharded(value) else torch.as_tensor(value)
            if rank() == 0:
                state.setdefault(names[index], {})[field] = tensor
    return state


def restore_state(optimiser: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put back what :func:`gathered_state` gave, on any number of processes; UserError where it is another model's."""
    names = parameter_names(optimiser)
    if strange := sorted(state.keys() - set(names)):
        raise UserError(
            f"the checkpoint holds the optimiser's state of a parameter {strange[0]!r}, which the student has not: it "
            "is another version's or another model's; start again with --overwrite"
        )
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    numbered = {
        index: {
            field: divided_like(tensor, parameter) if tensor.shape == parameter.shape else tensor
            for field, tensor in state[name].items()
        }
        for index, (name, parameter) in enumerate(zip(names, parameters, strict=True))
        if name in state
    }
    # Groups by number: a sharded optimiser has no state_dict of its own to take them from.
    groups, first = [], 0
    for group in optimiser.param_groups:
        last = first + len(group["params"])
        groups.append({**group, "params": list(range(first, last))})
        first = last
    optimiser.load_state_dict({"state": numbered, "param_groups": groups})


def parameter_names(optimiser: torch.optim.Optimizer) -> list[str]:
    """In the order of the optimiser's own numbers."""
    return [name for group in optimiser.param_groups for name in group["names"]]


def rate(step: int, spent: float, config: OptimiserConfig) -> float:
    """The learning rate of the ``step``-th step (from 1) when the share ``spent`` (0..1) of the budget is spent.

    lr * min(1, step / warmup_steps) * (f + (1 - f) * (1 + cos(pi * spent)) / 2) with f = final_lr: a linear warm-up
    whose length does not depend on the budget's, so that a short run takes the first steps of a long one, and a cosine.
    """
    rising = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    falling = 0.5 * (1 + math.cos(math.pi * min(max(spent, 0.0), 1.0)))
    return config.lr * rising * (config.final_lr + (1 - config.final_lr) * falling)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients so that their joint norm is at most ``max_norm`` (0: leave them); return the norm before."""
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    kinds = [
        [parameter for parameter in with_gradient if is_sharded(parameter) is kind] for kind in (False, True)
    ]
    norms = [
        gathered(
            torch.nn.utils.get_total_norm([parameter.grad for parameter in own if parameter.grad is not None])
        )
        for own in kinds
        if own
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    if max_norm > 0:
        for own in kinds:
            torch.nn.utils.clip_grads_with_norm_(own, max_norm, norm)
    return norm
