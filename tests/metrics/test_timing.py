"""Time figures on hand-made traces."""

from collections.abc import Callable

import pytest

from specalign.metrics.timing import latency_percentiles_ms, median_step_s, step_costs_by_draft, time_split
from specalign.records import GenerationRecord, StepTrace

Trace = Callable[..., StepTrace]
Record = Callable[..., GenerationRecord]


def test_time_split_is_a_mean_over_steps_and_prefill_over_generations(trace: Trace, record: Record) -> None:
    long = record("ours", "a", [1, 2, 3], trace((2, 1, 0, 1), (2, 2, 2, 2), draft=0.1), prefill_s=1.0)
    short = record("ours", "b", [1], trace((0, 0, 0, 1), verify=2.5), prefill_s=3.0)
    split = time_split([long, short])
    assert split.prefill_ms == 2000
    assert split.draft_ms == pytest.approx((200 + 200 + 0) / 3)
    assert split.verify_ms == pytest.approx((1000 + 1000 + 2500) / 3)
    assert split.rest_ms == pytest.approx(10)


def test_median_of_the_steps_that_drafted_so_many(trace: Trace) -> None:
    traces = [trace((3, 1, 0, 1), verify=1), trace((3, 1, 0, 1), verify=2), trace((3, 1, 0, 1), verify=9)]
    assert median_step_s([*traces, trace((1, 1, 1, 2), verify=50)], "verify_s", 3) == 2
    assert median_step_s(traces, "verify_s", 2) is None


def test_latency_shares_a_step_among_its_tokens(trace: Trace) -> None:
    """Steps of 1 s: one gives four tokens, 250 ms each, the other one token of 1000 ms."""
    traces = [trace((3, 3, 3, 4), (3, 1, 0, 1), draft=0, rest=0)]
    assert latency_percentiles_ms(traces, (50, 100)) == [250, 1000]
    assert latency_percentiles_ms([], (50,)) == [None]


def test_step_costs_by_draft_length(trace: Trace) -> None:
    costs = step_costs_by_draft([trace((3, 1, 0, 1), (0, 0, 0, 1), (3, 1, 0, 1), draft=0.1, rest=0)])
    assert list(costs) == [0, 3]
    assert costs[0] == (1, 1.0)
    assert costs[3][0] == 2
    assert costs[3][1] == pytest.approx(1.3)
