"""Time without waiting: CUDA events where the device runs ahead of Python, a monotonic clock elsewhere."""

from __future__ import annotations

import time

import torch

Mark = float | torch.cuda.Event


class Clock:
    """Marks points in time on a device, the current one or not. Only :meth:`seconds` and :meth:`settle` may wait."""

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.device = device

    def mark(self) -> Mark:
        """Now, in the device's own order of work."""
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def settle(self) -> float:
        """Wait until the device has done all its work; returns the host's seconds then."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, start: Mark, end: Mark) -> float:
        """Seconds between two marks; call after :meth:`settle`."""
        if isinstance(start, float) and isinstance(end, float):
            return end - start
        assert not isinstance(start, float)
        assert not isinstance(end, float)
        return start.elapsed_time(end) / 1000
