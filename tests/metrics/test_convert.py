"""Other projects' figures on hand-made traces."""

from collections.abc import Callable

import pytest

from specalign.metrics.acceptance import acceptance_by_position, survival_by_position
from specalign.metrics.convert import (
    conditional_from_survival,
    foreign_figures,
    tau_from_acceptance_length,
)
from specalign.records import StepTrace

Trace = Callable[..., StepTrace]


def test_figures_by_hand(trace: Trace) -> None:
    """Accepted 3 of 3, 1 of 3, nothing drafted, and 1 of 2 where that one ended the output."""
    found = foreign_figures([trace((3, 3, 3, 4), (3, 2, 1, 2), (0, 0, 0, 1), (2, 1, 1, 1))], 3)
    assert found.vllm_draft_acceptance_rate == 5 / 8
    assert found.vllm_mean_acceptance_length == 1 + 5 / 3
    assert found.vllm_acceptance_by_position == [3 / 3, 1 / 3, 1 / 3]
    assert found.sglang_accept_length == found.eagle_average_acceptance_length == 8 / 4
    assert found.spec_bench_mean_accepted_tokens == 1 + 5 / 4
    assert found.deepspec_accepted_length == 1 + 5 / 3


def test_without_drafts_there_are_no_draft_figures(trace: Trace) -> None:
    found = foreign_figures([trace((0, 0, 0, 1))], 3)
    assert found.vllm_draft_acceptance_rate is found.vllm_mean_acceptance_length is None
    assert found.vllm_acceptance_by_position == []
    assert found.sglang_accept_length == 1


def test_there_and_back_for_full_drafts(trace: Trace) -> None:
    traces = [trace((2, 2, 2, 3), (2, 2, 1, 2), (2, 1, 0, 1), (2, 2, 2, 3))]
    theirs = foreign_figures(traces, 2)
    survival = theirs.vllm_acceptance_by_position
    assert survival == survival_by_position(traces, 2)
    assert conditional_from_survival(survival) == pytest.approx(acceptance_by_position(traces, 2))
    assert conditional_from_survival([0.5, 0.0, 0.0]) == [0.5, 0.0, None]


def test_the_bonus_token() -> None:
    assert tau_from_acceptance_length(1.7, counts_bonus=False) == pytest.approx(2.7)
    assert tau_from_acceptance_length(2.7, counts_bonus=True) == 2.7
