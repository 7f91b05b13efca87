"""What the micro-benchmarks share: figures held against bars, and the memory of this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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


def resident_bytes() -> int:
    """The resident set of this process (Linux only)."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """Its high-water mark, since :func:`restart_peak` if that was called (Linux only)."""
    return _status_bytes("VmHWM")


def restart_peak() -> None:
    """Let the high-water mark fall to what is resident now (Linux only)."""
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")
