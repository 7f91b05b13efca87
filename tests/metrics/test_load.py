"""The cost model with batch, against closed forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specalign.metrics.load import (
    crossover,
    fitted_draft_ratio,
    percentiles_ms,
    predicted_batch_speedup,
    step_seconds,
)

FREE = {1: 0.1, 64: 0.1}
"""Bound by reading weights: any batch takes as long."""
COMPUTE = {1: 0.1, 4: 0.4, 16: 1.6}
"""Bound by computing: n tokens take n times as long."""


def test_steps_lie_on_lines_between_measurements_and_beyond_them() -> None:
    assert step_seconds(COMPUTE, 2) == pytest.approx(0.2)
    assert step_seconds(COMPUTE, 32) == pytest.approx(3.2)
    assert step_seconds({1: 0.1}, 8) == pytest.approx(0.1)
    assert step_seconds({1: 0.1, 4: 0.05}, 8) == pytest.approx(0.05)  # noise never makes more tokens cheaper


@given(st.floats(1, 5), st.integers(1, 4), st.floats(0, 1))
def test_where_batches_are_free_the_model_is_that_of_one_request(tau: float, gamma: int, c: float) -> None:
    expected = tau / (gamma * c + 1)
    for batch in (1, 4, 8):
        assert predicted_batch_speedup(FREE, batch, gamma, tau=tau, c=c) == pytest.approx(expected)


@given(st.floats(1, 5), st.integers(1, 4), st.floats(0, 1))
def test_where_tokens_cost_what_they_weigh_speculation_never_pays(tau: float, gamma: int, c: float) -> None:
    expected = tau / (gamma * c + gamma + 1)
    for batch in (1, 4, 16):
        assert predicted_batch_speedup(COMPUTE, batch, gamma, tau=tau, c=c) == pytest.approx(expected)


def test_the_fitted_drafter_explains_the_step_that_it_was_fitted_to() -> None:
    plain = {1: 0.1, 4: 0.12, 16: 0.2}
    step_s, tau, gamma = 0.19, 2.2, 3
    c = fitted_draft_ratio(plain, 1, gamma, step_s)
    assert predicted_batch_speedup(plain, 1, gamma, tau=tau, c=c) == pytest.approx(tau * 0.1 / step_s)
    assert fitted_draft_ratio(plain, 1, gamma, 0.05) == 0  # less than verification alone: nothing is left


def test_the_crossing_lies_between_the_measured_sides_of_it() -> None:
    assert crossover({1: 1.5, 4: 0.5}) == pytest.approx(2)
    assert crossover({1: 1.5, 4: 1.0}) == pytest.approx(4)
    assert crossover({1: 0.9, 4: 0.5}) is None
    assert crossover({1: 1.9, 4: 1.5}) is None
    assert crossover({}) is None


def test_percentiles_are_milliseconds() -> None:
    assert percentiles_ms([0.1, 0.2, 0.3]) == pytest.approx([200, 290, 298])
    assert percentiles_ms([]) == []
