"""Acceptance figures on traces small enough to count by hand."""

from collections.abc import Callable

import pytest

from specalign.metrics import acceptance
from specalign.records import StepTrace

Trace = Callable[..., StepTrace]


@pytest.fixture
def traces(trace: Trace) -> list[StepTrace]:
    """Accepted 3 of 3, 1 of 3 (second rejected), 0 of 3, 1 of 2; then a draft that its own end cut at 2 of 3."""
    return [trace((3, 3, 3, 4), (3, 2, 1, 2)), trace((3, 1, 0, 1), (2, 2, 1, 2), (3, 2, 2, 2))]


def test_counts(traces: list[StepTrace]) -> None:
    assert acceptance.n_steps(traces) == 5
    assert acceptance.n_drafted(traces) == 3 + 3 + 3 + 2 + 3
    assert acceptance.n_examined(traces) == 3 + 2 + 1 + 2 + 2
    assert acceptance.n_accepted(traces) == 3 + 1 + 0 + 1 + 2
    assert acceptance.n_emitted(traces) == 4 + 2 + 1 + 2 + 2
    assert acceptance.total_overlap(traces) == pytest.approx(0.5 * (3 + 2 + 1 + 2 + 2))
    assert acceptance.accepted_histogram(traces, 3) == [1, 2, 1, 1]
    assert acceptance.tau_by_request(traces) == pytest.approx((6 / 2 + 5 / 3) / 2)


def test_acceptance_at_a_position_is_conditional_on_reaching_it(traces: list[StepTrace]) -> None:
    assert acceptance.acceptance_by_position(traces, 3) == [4 / 5, 2 / 4, 1 / 1]


def test_survival_counts_a_draft_up_to_the_end_of_the_output(traces: list[StepTrace]) -> None:
    """At position 3: one draft survived of the three that were rejected or not; a short and an ended one are out."""
    assert acceptance.survival_by_position(traces, 3) == [4 / 5, 2 / 5, 1 / 3]


def test_survival_is_the_running_product_of_conditional_acceptance(trace: Trace) -> None:
    """Holds exactly where all drafts have the full length and none is cut off by the end of the output."""
    full = [trace((3, 3, 3, 4), (3, 3, 2, 3), (3, 2, 1, 2), (3, 1, 0, 1), (3, 3, 3, 4))]
    conditional = [share or 0.0 for share in acceptance.acceptance_by_position(full, 3)]
    product = [
        conditional[0],
        conditional[0] * conditional[1],
        conditional[0] * conditional[1] * conditional[2],
    ]
    assert acceptance.survival_by_position(full, 3) == pytest.approx(product)
    tau = acceptance.n_emitted(full) / acceptance.n_steps(full)
    assert tau == pytest.approx(1 + sum(product))


def test_a_position_that_nothing_reached_has_no_rate(trace: Trace) -> None:
    assert acceptance.acceptance_by_position([trace((2, 1, 0, 1))], 3) == [0.0, None, None]
    assert acceptance.survival_by_position([trace((2, 1, 0, 1))], 3) == [0.0, 0.0, None]
    assert acceptance.tau_by_request([]) is None
