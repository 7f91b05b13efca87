"""The cost model: closed forms, limits, and the numbers of the paper."""

from dataclasses import replace

import pytest

from specalign.analysis.cost_model import (
    StepCosts,
    break_even_alpha,
    expected_tokens,
    leviathan_speedup,
    predicted_speedup,
    speedup,
    tokens_from_survival,
)

COSTS = StepCosts(
    gamma=4, target_s=50e-3, plain_overhead_s=1e-3, draft_s=4 * 5e-3, verify_s=80e-3, overhead_s=2e-3
)


def test_ratios() -> None:
    assert COSTS.c == pytest.approx(0.1)
    assert COSTS.verify_ratio == pytest.approx(1.6)
    assert COSTS.price == pytest.approx((20 + 80 + 2) / (50 + 1))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_expected_tokens_is_the_geometric_sum(alpha: float) -> None:
    assert expected_tokens(alpha, 5) == pytest.approx((1 - alpha**6) / (1 - alpha))
    assert tokens_from_survival([alpha**i for i in range(1, 6)]) == pytest.approx(expected_tokens(alpha, 5))


def test_full_acceptance_emits_gamma_plus_one() -> None:
    assert expected_tokens(1.0, 5) == 6


def test_table_1_of_leviathan_et_al() -> None:
    """alpha 0.6, gamma 2: 1.96 operations speed-up at c = 0 ... alpha 0.9, gamma 10: 6.86."""
    assert leviathan_speedup(0.6, 2, 0) == pytest.approx(1.96)
    assert leviathan_speedup(0.9, 10, 0) == pytest.approx(6.86, abs=0.005)


def test_break_even_is_where_the_speed_up_is_one() -> None:
    alpha = break_even_alpha(COSTS)
    assert alpha is not None
    assert speedup(expected_tokens(alpha, COSTS.gamma), COSTS) == pytest.approx(1)


def test_break_even_at_the_limits() -> None:
    assert break_even_alpha(replace(COSTS, verify_s=10e-3)) == 0
    assert break_even_alpha(replace(COSTS, draft_s=10.0)) is None


def test_free_drafts_and_free_verification_give_the_papers_speed_up() -> None:
    ideal = StepCosts(gamma=4, target_s=1, plain_overhead_s=0, draft_s=4 * 0.1, verify_s=1, overhead_s=0)
    assert speedup(expected_tokens(0.7, 4), ideal) == pytest.approx(leviathan_speedup(0.7, 4, 0.1))


def test_prediction_weighs_draft_lengths() -> None:
    """Ten steps without a draft cost as plain ones; ten with two tokens emit 1 + 0.5 + 0.25 in 1.5 plain steps."""
    found = predicted_speedup([0.5, 0.25], {0: (10, 1.0), 2: (10, 1.5)}, plain_step_s=1.0)
    assert found == pytest.approx((10 * 1 + 10 * 1.75) / (10 * 1 + 10 * 1.5))
