"""Weights in the layout of the CPU's own matrix kernels, for decoding without a compiler.

A decode step multiplies a handful of rows by every weight. torch's general routine handles two to eight rows
much more slowly than one, so that verifying a draft looks expensive; oneDNN's pre-packed one does not
(benchmarks/README.md, "Packed weights").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ROWS_HINT = 4
"""Rows of the inputs that the layout is chosen for; others are computed correctly too."""


def can_pack(weight: Tensor) -> bool:
    """Whether this machine has a packed kernel for ``weight`` [out, in]."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    )


def pack(weight: Tensor) -> Tensor:
    """An opaque copy of ``weight`` [out, in] in oneDNN's layout: as many bytes again."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS_HINT)


def packed_linear(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """inputs [..., in] @ weight.T + bias of a packed weight. The operator that inductor emits for CPUs."""
    return torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")


class PackedLinear(nn.Linear):
    """A frozen nn.Linear that computes with the packed copy; without ``keep`` its weight has a shape and no memory."""

    def __init__(self, linear: nn.Linear, *, keep: bool = True) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = pack(linear.weight)
        self.weight, self.bias = linear.weight, linear.bias
        if not keep:
            self.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return packed_linear(inputs, self.packed, self.bias)


def pack_linears(model: nn.Module) -> int:
    """Replace every plain linear layer that can be packed, in place; returns how many there were.

    The model must not be trained afterwards: the packed copies stand in the place of its weights, of which only the
    output head's are kept, since drafters take rows of it.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    plain = [
        (parent, name, child)
        for parent, name, child in found
        if type(child) is nn.Linear and can_pack(child.weight)
    ]
    for parent, name, linear in plain:
        setattr(parent, name, PackedLinear(linear, keep=linear is head))
    return len(plain)
