"""The physical ceilings beside a speed: how fast this machine moves bytes, and multiplies."""

from __future__ import annotations

from statistics import median

import torch

from specalign.decoding.clock import Clock

COPY_BYTES = 256 * 2**20
"""Larger than any processor cache."""
COPIES = 7


def copy_bytes_per_s(device: torch.device, n_bytes: int = COPY_BYTES) -> float:
    """Bytes read and written per second by copying a large tensor, median of a few copies.

    One decoding step at batch 1 reads every weight once, so its bytes over this rate is about the least time
    that the step can take.
    """
    source = torch.ones(n_bytes, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    clock = Clock(device)
    seconds = []
    for _ in range(COPIES):
        begin = clock.settle()
        copy.copy_(source)
        seconds.append(clock.settle() - begin)
    return 2 * n_bytes / median(seconds)


def product_flops_per_s(device: torch.device, dtype: torch.dtype, size: int = 0) -> float:
    """Operations per second of a product of two square matrices of ``size`` (0: 8,192 on CUDA, else 1,024), median.

    Training and prefill multiply so many rows at a time that this, not the bandwidth, bounds them.
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    clock = Clock(device)
    seconds = []
    for _ in range(COPIES):
        begin = clock.settle()
        left @ right
        seconds.append(clock.settle() - begin)
    return 2 * size**3 / median(seconds)
