"""The physical ceiling beside a speed: how fast this machine moves bytes."""

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
