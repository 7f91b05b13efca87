"""What the micro-benchmarks share: figures held against bars, memory, and the device's ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from specalign.benchmarks.bandwidth import copy_bytes_per_s, product_flops_per_s


def judged(bars: Mapping[str, float], figures: Sequence[float | None]) -> list[dict[str, Any]]:
    """Each bar whose figure was measured, and whether it is met; a bar's text says "at most" or "at least"."""
    return [
        {
            "bar": text,
            "limit": limit,
            "measured": value,
            "met": value <= limit if "at most" in text else value >= limit,
        }
        for (text, limit), value in zip(bars.items(), figures, strict=True)
        if value is not None
    ]


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the device can do at most: bytes copied and operations of a large matrix product, per second."""
    return {
        "copy_bytes_per_s": copy_bytes_per_s(device),
        "product_flops_per_s": product_flops_per_s(device, dtype),
    }


def resident_bytes(device: torch.device) -> int:
    """What this process holds: tensors on CUDA, else its resident set (Linux only)."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status_bytes("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """Its high-water mark, since :func:`restart_peak` if that was called."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status_bytes("VmHWM")


def restart_peak(device: torch.device) -> None:
    """Let the high-water mark fall to what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")
