"""A student whose layers are divided among the processes: torch's ``fully_shard`` (FSDP2, which is ZeRO stage 3).

Each process keeps its share of every layer's weights, gradients and moments; a layer is whole only while a forward or
backward pass is in it. Embeddings, the last norm and the head stay whole on every process: the loss reads the head
outside of any forward pass. What a single process does by itself (decoding, whose length differs from process to
process, and what rank 0 alone measures and writes) goes on inside :func:`whole`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specalign.errors import UserError
from specalign.models.properties import Tower, tower_layers
from specalign.training.distributed import world_size


def shard(model: PreTrainedModel) -> None:
    """Divide the layers of each tower, in place; gradients are summed over the processes, as the others are."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(model.device.type, (world_size(),))
    for tower, stack in _stacks(model).items():
        layers = tower_layers(model, tower)
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        divided = {id(parameter) for parameter in layers.parameters()}
        rest = {parameter for parameter in stack.parameters() if id(parameter) not in divided}
        fully_shard(stack, mesh=mesh, ignored_params=rest)  # the root, which overlaps its layers' transfers
        for module in stack.modules():
            if isinstance(module, FSDPModule):  # sums, by an operation that gloo has too
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)


def require_divisible(sharded: str) -> None:
    """Raise UserError where torch cannot forget what one process alone has run of a divided model (before 2.13)."""
    if sharded != "weights" or world_size() == 1:
        return
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "reset_iter_state"):
        raise UserError(
            f"optimiser.sharded = weights needs torch 2.13, this is {torch.__version__}; "
            "optimiser.sharded = moments does without"
        )


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add the gradients of all processes; a parameter without one on this process counts as 0.

    Those of divided layers have been added where they were computed.
    """
    if world_size() == 1:
        return
    for parameter in parameters:
        if is_sharded(parameter):
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of it."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def gathered(tensor: Tensor) -> Tensor:
    """The whole of it; every process calls this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def divided_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of ``value``, which every process has whole, where ``like`` is divided."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    placed: Any = like
    return distribute_tensor(value.to(like.device), placed.device_mesh, placed.placements, src_data_rank=None)


@contextmanager
def whole(model: PreTrainedModel) -> Iterator[None]:
    """Every process has all weights inside the block, and may run the model by itself; all processes enter it."""
    if not has_divided_layers(model):
        yield
        return
    stacks: dict[Tower, Any] = dict(_stacks(model))
    layers: list[Any] = [layer for tower in stacks for layer in tower_layers(model, tower)]
    for layer in layers:
        layer.set_reshard_after_forward(False)
        layer.unshard()
    ran: set[Tower] = set()
    hooks = [
        stack.register_forward_hook(lambda *_, tower=tower: ran.add(tower)) for tower, stack in stacks.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.reshard()
            layer.set_reshard_after_forward(True)
        for tower in ran:  # passes of one process alone would count in the order of the next backward
            stacks[tower].reset_iter_state()


def state_to_save(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """What ``save_pretrained`` is to write of a model with divided layers, inside :func:`whole`; None: all it has.

    The ``state_dict`` of such a model would divide it again.
    """
    if not has_divided_layers(model):
        return None
    state: dict[str, Tensor] = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                state[name] = buffer
    return state


def has_divided_layers(model: PreTrainedModel) -> bool:
    """Whether :func:`shard` has been here."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model.get_decoder(), FSDPModule)


def _stacks(model: PreTrainedModel) -> dict[Tower, nn.Module]:
    stacks: dict[Tower, nn.Module] = {"decoder": model.get_decoder()}
    return {"encoder": model.get_encoder(), **stacks} if model.config.is_encoder_decoder else stacks
