"""Ceilings on traces small enough to count by hand."""

from collections.abc import Callable

import pytest

from specalign.metrics.ceilings import flop_ratio, least_seconds, memory_bound_speedup
from specalign.records import StepTrace

Trace = Callable[..., StepTrace]


def test_memory_bound_speed_up() -> None:
    assert memory_bound_speedup(2.4, gamma=4, c=0.05) == pytest.approx(2.4 / 1.2)
    assert memory_bound_speedup(2.4, gamma=4, c=0) == 2.4


def test_flops_by_hand(trace: Trace) -> None:
    """Steps of 3 and 1 drafts: 4 tokens through 10 drafter parameters, 6 through 100 of the target, for 5 tokens."""
    assert flop_ratio([trace((3, 3, 3, 4), (1, 1, 0, 1))], 100, 10) == pytest.approx(
        (4 * 10 + 6 * 100) / (5 * 100)
    )
    assert flop_ratio([], 100, 10) is None


def test_plain_decoding_does_the_targets_work(trace: Trace) -> None:
    assert flop_ratio([trace((0, 0, 0, 1), (0, 0, 0, 1))], 100, 10) == 1


def test_a_step_reads_the_target_once_and_the_drafter_a_draft(trace: Trace) -> None:
    traces = [trace((3, 1, 0, 1)), trace((0, 0, 0, 1))]
    assert least_seconds(traces, target=1000, drafter=10, bytes_per_s=100) == pytest.approx(
        (2 * 1000 + 3 * 10) / 100
    )
