"""What a device is told before models run on it."""

from __future__ import annotations

import torch


def prepare_device(device: torch.device) -> None:
    """Make a CUDA device the current one, and keep cuDNN's attention off it.

    Streams, events and kernels that name no device belong to the current one. cuDNN's attention, which torch
    prefers on H100, builds a plan for every new shape, for tenths of a second; decoding meets one at every step.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)
