"""Corrections, planning and hierarchical intervals, against closed forms and simulations."""

import math

import numpy as np
import pytest

from specalign.metrics.comparisons import (
    compare_seeds,
    holm,
    minimum_detectable_difference,
    paired_p_value,
    prompts_needed,
)


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, never decreasing."""
    found = holm({"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.02})
    assert list(found) == ["c", "a", "d", "b"]
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})
    assert holm({"one": 0.7, "two": 0.9}) == {"one": 1.0, "two": 1.0}


def test_an_exact_sign_permutation() -> None:
    """All five differences have one sign: 2 of the 2^5 patterns are as extreme."""
    assert paired_p_value([1, 2, 3, 4, 5], [0, 0, 0, 0, 0]) == pytest.approx(2 / 32)
    assert paired_p_value([1.0], [0.0]) == 1


def test_equal_methods_do_not_differ() -> None:
    assert paired_p_value([1, 2, 3], [1, 2, 3]) == 1


def test_planning_and_its_inverse_agree() -> None:
    n = prompts_needed(0.03, 0.05)
    ratios = [0.05 * math.sqrt((n - 1) / n) * sign for sign in (1, -1)] * (n // 2)
    found = minimum_detectable_difference(ratios)
    assert found == pytest.approx(0.03, rel=0.05)
    assert minimum_detectable_difference([0.1]) is None


def test_a_planted_3_percent_difference_is_found_as_often_as_planned() -> None:
    """80 % power, 200 simulated comparisons: binomial standard error 0.03."""
    generator = np.random.default_rng(0)
    n = prompts_needed(0.03, 0.06)
    found = 0
    for run in range(200):
        difference = math.log(1.03) + generator.normal(0, 0.06, n)
        found += paired_p_value(difference.tolist(), [0.0] * n, seed=run) < 0.05
    assert 0.7 <= found / 200 <= 0.9


def test_a_seed_effect_widens_the_interval() -> None:
    """Two seeds that differ by 20 % leave more doubt than one; prompts alone cannot tell."""
    generator = np.random.default_rng(0)
    tokens = [1.0] * 30
    theirs = [(generator.uniform(1, 2, 30).tolist(), tokens)]
    fast, slow = ([second * factor for second in theirs[0][0]] for factor in (0.4, 0.6))
    one = compare_seeds([(fast, tokens)], theirs)
    two = compare_seeds([(fast, tokens), (slow, tokens)], theirs)
    assert one.ratio.value == pytest.approx(1 / 0.4)
    assert one.ratio.low is not None
    assert one.ratio.high is not None
    assert one.ratio.high - one.ratio.low < 1e-9
    assert two.ratio.value == pytest.approx(2 / (0.4 + 0.6))
    assert two.ratio.low == pytest.approx(1 / 0.6)
    assert two.ratio.high == pytest.approx(1 / 0.4)
    assert one.p_value == 1 / 2000, "no resample reaches 1"
    assert one.detectable is not None
    assert two.detectable is not None
    assert one.detectable < 1e-9 < two.detectable


def test_seeds_of_one_objective_do_not_differ() -> None:
    generator = np.random.default_rng(1)
    tokens = [1.0] * 30
    base = generator.uniform(1, 2, 30)
    sides = [[((base * generator.normal(1, 0.03)).tolist(), tokens) for _ in range(4)] for _ in range(2)]
    found = compare_seeds(*sides)
    assert found.ratio.low is not None
    assert found.ratio.high is not None
    assert found.ratio.low < 1 < found.ratio.high
    assert found.p_value > 0.05


def test_sides_of_different_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        compare_seeds([([1.0], [1.0])], [([1.0, 2.0], [1.0, 1.0])])
