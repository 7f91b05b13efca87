"""What decodes a suite, by its name in ``engine.name``; nothing heavy is imported before one is asked for."""

from __future__ import annotations

from collections.abc import Callable

from specalign.benchmarks.config import BenchConfig
from specalign.results import BenchmarkResult


def _own(config: BenchConfig) -> BenchmarkResult:
    from specalign.benchmarks.runner import run

    return run(config)


def _vllm(config: BenchConfig) -> BenchmarkResult:
    from specalign.serving.environment import require_client

    require_client()
    from specalign.benchmarks.served import run_served

    return run_served(config)


ENGINES: dict[str, Callable[[BenchConfig], BenchmarkResult]] = {"own": _own, "vllm": _vllm}
"""Each runs, or goes on with, the suite of a config in its output folder and returns the result."""
