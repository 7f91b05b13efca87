"""Where the seconds of some generations went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, median

import numpy as np

from specalign.records import GenerationRecord, StepTrace
from specalign.results import TimeSplit


def time_split(records: Sequence[GenerationRecord]) -> TimeSplit:
    """Mean milliseconds: of prefill a generation; of drafting, verification and the rest a step."""
    traces = [record.steps for record in records if record.steps]
    return TimeSplit(
        prefill_ms=1000 * mean(record.prefill_s for record in records),
        draft_ms=_mean_step_ms(traces, "draft_s"),
        verify_ms=_mean_step_ms(traces, "verify_s"),
        rest_ms=_mean_step_ms(traces, "rest_s"),
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


def latency_percentiles_ms(traces: Sequence[StepTrace], percentiles: Sequence[float]) -> list[float | None]:
    """Percentiles over decoded tokens of their latency, in milliseconds.

    A token's latency is the seconds of the step that emitted it divided by the tokens that the step emitted.
    """
    seconds, tokens = [], []
    for trace in traces:
        for *parts, emitted in zip(trace.draft_s, trace.verify_s, trace.rest_s, trace.n_emitted, strict=True):
            seconds.append(sum(parts) / max(1, emitted))
            tokens.append(emitted)
    if not sum(tokens):
        return [None] * len(percentiles)
    return [float(1000 * value) for value in np.percentile(np.repeat(seconds, tokens), percentiles)]


def step_costs_by_draft(traces: Sequence[StepTrace]) -> dict[int, tuple[int, float]]:
    """Drafted tokens of a step -> (number of such steps, median seconds of one), ascending."""
    found: dict[int, list[float]] = defaultdict(list)
    for trace in traces:
        for *parts, drafted in zip(trace.draft_s, trace.verify_s, trace.rest_s, trace.n_drafted, strict=True):
            found[drafted].append(sum(parts))
    return {drafted: (len(found[drafted]), median(found[drafted])) for drafted in sorted(found)}


def _mean_step_ms(traces: Sequence[StepTrace], column: str) -> float | None:
    values = [seconds for trace in traces for seconds in getattr(trace, column)]
    return 1000 * mean(values) if values else None
