"""Acceptance: how much of what was drafted stays. Every figure is pooled over the steps of some generations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from specalign.records import StepTrace


def n_examined(traces: Iterable[StepTrace]) -> int:
    """Drafted tokens that the rule looked at."""
    return sum(sum(trace.n_examined) for trace in traces)


def n_accepted(traces: Iterable[StepTrace]) -> int:
    """Drafted tokens that were accepted and emitted."""
    return sum(sum(trace.n_accepted) for trace in traces)


def n_drafted(traces: Iterable[StepTrace]) -> int:
    """Drafted tokens, those after a rejection included."""
    return sum(sum(trace.n_drafted) for trace in traces)


def n_emitted(traces: Iterable[StepTrace]) -> int:
    """Tokens added to the outputs."""
    return sum(sum(trace.n_emitted) for trace in traces)


def n_steps(traces: Iterable[StepTrace]) -> int:
    """Target calls."""
    return sum(len(trace.n_emitted) for trace in traces)


def tau_by_request(traces: Iterable[StepTrace]) -> float | None:
    """Mean over generations of each one's own tokens per target call; None without steps."""
    taus = [sum(trace.n_emitted) / len(trace.n_emitted) for trace in traces if trace.n_emitted]
    return sum(taus) / len(taus) if taus else None


def total_overlap(traces: Iterable[StepTrace]) -> float:
    """Sum over examined positions of sum_v min(p, q): the expected number of accepted tokens."""
    return sum(sum(step) for trace in traces for step in trace.overlap)


def acceptance_by_position(traces: Sequence[StepTrace], gamma: int) -> list[float | None]:
    """Accepted over examined at draft position 1..gamma: the chance to pass, given that one got there."""
    return [
        _share(_count(traces, "n_accepted", place), _count(traces, "n_examined", place))
        for place in range(1, gamma + 1)
    ]


def survival_by_position(traces: Sequence[StepTrace], gamma: int) -> list[float | None]:
    """Share of drafts of at least i tokens whose first i tokens were all accepted, i = 1..gamma.

    A draft whose accepted end-of-sequence token ended the output before position i was not rejected: what would
    have become of position i is not known, and the draft counts only up to its end.
    """
    return [
        _share(_count(traces, "n_accepted", place), _count_at_risk(traces, place))
        for place in range(1, gamma + 1)
    ]


def accepted_histogram(traces: Iterable[StepTrace], gamma: int) -> list[int]:
    """Number of steps with 0, 1, ..., gamma accepted tokens."""
    counts = [0] * (gamma + 1)
    for trace in traces:
        for accepted in trace.n_accepted:
            counts[accepted] += 1
    return counts


def _count(traces: Iterable[StepTrace], column: str, at_least: int) -> int:
    return sum(value >= at_least for trace in traces for value in getattr(trace, column))


def _count_at_risk(traces: Iterable[StepTrace], place: int) -> int:
    """Drafts that reach ``place``, without those that an accepted end of sequence cut off before it."""
    return sum(
        drafted >= place and not examined == accepted < place
        for trace in traces
        for drafted, examined, accepted in zip(trace.n_drafted, trace.n_examined, trace.n_accepted, strict=True)
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
