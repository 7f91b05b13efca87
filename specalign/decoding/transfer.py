"""Small host lists to the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """The int64 tensor of ``values``; on CUDA copied from pinned memory, behind the work that is queued there.

    ``torch.tensor(values, device="cuda")`` would wait until the device has done all its work.
    """
    tensor = torch.tensor(values, dtype=torch.long)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
