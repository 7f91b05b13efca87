"""Where the seconds of some generations went."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

from specalign.results import GenerationRecord, StepTrace, TimeSplit


def time_split(records: Sequence[GenerationRecord]) -> TimeSplit:
    """Mean milliseconds: of prefill a generation; of drafting, verification and the rest a step."""
    traces = [record.steps for record in records if record.steps]
    return TimeSplit(
        prefill_ms=1000 * mean(record.prefill_s for record in records),
        draft_ms=1000 * _mean_step(traces, "draft_s"),
        verify_ms=1000 * _mean_step(traces, "verify_s"),
        rest_ms=1000 * _mean_step(traces, "rest_s"),
    )


def median_step_s(traces: Sequence[StepTrace], column: str, n_drafted: int) -> float | None:
    """Median seconds of ``draft_s``, ``verify_s`` or ``rest_s`` over the steps that drafted ``n_drafted`` tokens."""
    values = [
        seconds
        for trace in traces
        for seconds, drafted in zip(getattr(trace, column), trace.n_drafted, strict=True)
        if drafted == n_drafted
    ]
    return median(values) if values else None


def _mean_step(traces: Sequence[StepTrace], column: str) -> float:
    values = [seconds for trace in traces for seconds in getattr(trace, column)]
    return mean(values) if values else 0.0
