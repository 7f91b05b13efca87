"""What a device is told before models run on it."""

from __future__ import annotations

import torch


def multiply_in_tf32(device: torch.device) -> None:
    """On CUDA, let float32 products be TF32's, eight times as fast: of a student outside autocast, in validation above
    all. Closed-form fits solve in float64 all the same."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def prepare_device(device: torch.device) -> None:
    """Make a CUDA device the current one, and keep cuDNN's attention off it.

    Streams, events and kernels that name no device belong to the current one. cuDNN's attention, which torch
    prefers on H100, builds a plan for every new shape, for tenths of a second; decoding meets one at every step.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)
