"""specalign: train drafters for speculative decoding, and measure what they are worth.

    import specalign

    student = specalign.train({"method": "gkd", "output": "runs/gkd"}, data=rows)
    result = specalign.benchmark({"output": "reports/gkd"}, drafters={"gkd": student})

Notation, everywhere (Leviathan et al. 2023, arXiv:2211.17192): p is the teacher or target, q the student
or drafter, gamma the draft length, alpha the acceptance rate, tau the tokens per target call, and
c = T_draft / T_target.

This module imports nothing heavy, so that ``--help`` stays instant: what it offers is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specalign.api import benchmark, train
    from specalign.benchmarks.config import BenchConfig
    from specalign.errors import UserError
    from specalign.outcomes import BenchmarkResult, Plot, TrainedStudent
    from specalign.training.config import TrainConfig

__version__ = "0.1.0"
__all__ = [
    "BenchConfig",
    "BenchmarkResult",
    "Plot",
    "TrainConfig",
    "TrainedStudent",
    "UserError",
    "__version__",
    "benchmark",
    "train",
]
_PLACES = {
    "BenchConfig": "benchmarks.config",
    "BenchmarkResult": "outcomes",
    "Plot": "outcomes",
    "TrainConfig": "training.config",
    "TrainedStudent": "outcomes",
    "UserError": "errors",
    "benchmark": "api",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
