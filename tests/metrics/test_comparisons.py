"""Corrections, joint tests, planning and intervals over seeds, against closed forms and simulations."""

import math

import numpy as np
import pytest

from specalign.metrics.comparisons import (
    CAUTION,
    SHARE,
    compare_seeds,
    holm,
    joint_test,
    minimum_detectable_difference,
    prompts_needed,
    reach_of,
    sign_patterns,
)
from specalign.metrics.statistics import Array, Estimate, log_ratio


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, never decreasing."""
    found = holm({"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.02})
    assert list(found) == ["c", "a", "d", "b"]
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})
    assert holm({"one": 0.7, "two": 0.9}) == {"one": 1.0, "two": 1.0}


def test_patterns_are_all_of_them_once_up_to_14_prompts_and_draws_beyond() -> None:
    few = sign_patterns(5)
    assert few.shape == (16, 5)
    assert (few[0] == 1).all()
    assert len({tuple(pattern) for pattern in np.concatenate([few, -few])}) == 32
    assert sign_patterns(40).shape == (10_000, 40)


def pairs_of(logs: Array, rows: list[tuple[int, int]]) -> tuple[Array, Array]:
    """Seconds of the second and of the first of each pair of rows, from log seconds [prompts, rows]."""
    seconds = np.exp(logs)
    return seconds[:, [j for _, j in rows]], seconds[:, [i for i, _ in rows]]


def against_one(logs: Array) -> tuple[Array, Array]:
    """Rows against a plain target of a second a prompt."""
    return np.ones_like(logs), np.exp(logs)


def test_one_comparison_is_the_exact_swap_test_with_a_third_more() -> None:
    """All five prompts take longer on one side: 2 of the 2^5 patterns are as extreme, and none can be more."""
    found = joint_test(np.array([[1.1], [2.2], [3.4], [4.5], [5.7]]), np.array([[1.0], [2], [3], [4], [5]]))
    assert found.p_values == pytest.approx([4 / 3 * 2 / 32])
    assert found.smallest_p == pytest.approx(4 / 3 * 2 / 32)
    assert found.critical == math.inf, "five prompts can show nothing"
    assert SHARE > 2 / 2**6, "six can"


def test_p_values_by_brute_force_over_swaps() -> None:
    """Both sides of some prompts exchanged, ratio and dispersion taken anew; one of three columns misses a prompt.

    The observed t has the estimate's standard error (HC3), those of the swaps the plain one.
    """
    generator = np.random.default_rng(0)
    theirs, ours = np.exp(generator.normal(0.3, 0.5, (7, 3))), np.exp(generator.normal(0, 0.5, (7, 3)))
    theirs[2, 1] = ours[2, 1] = math.nan

    def plain_t(a: Array, b: Array) -> float:
        z = len(a) * (a / a.sum() - b / b.sum())
        return float(abs(math.log(a.sum() / b.sum())) / z.std(ddof=1) * math.sqrt(len(a)))

    def largest(signs: Array) -> float:
        swap = (signs < 0)[:, None]
        sides = np.where(swap, ours, theirs), np.where(swap, theirs, ours)
        columns = zip(sides[0].T, sides[1].T, strict=True)
        return max(plain_t(a[np.isfinite(a)], b[np.isfinite(b)]) for a, b in columns)

    every = [largest(signs) for signs in sign_patterns(7)]
    estimates = [log_ratio(a[np.isfinite(a)], b[np.isfinite(b)]) for a, b in zip(theirs.T, ours.T, strict=True)]
    observed = [abs(one.log) / one.standard_error for one in estimates if one]
    every[0] = max(every[0], *observed)
    expected = [min(1, CAUTION * np.mean([one >= own * (1 - 1e-9) for one in every])) for own in observed]
    found = joint_test(theirs, ours)
    assert found.p_values == pytest.approx(expected)
    assert [t > found.critical for t in observed] == [p < 0.05 for p in found.p_values]


def test_a_side_that_is_the_other_one_never_differs_and_a_constant_factor_always_does() -> None:
    seconds = np.random.default_rng(0).uniform(1, 2, (8, 1))
    found = joint_test(np.hstack([seconds, 2 * seconds]), np.hstack([seconds, seconds]))
    assert found.p_values == pytest.approx([1.0, CAUTION * 2 / 2**8])


def test_a_planted_difference_is_found_beside_many_others_and_nothing_else_is() -> None:
    """12 prompts, all 378 pairs of 28 rows, one row twice as fast; true nulls are called different in at most 5 %."""
    generator = np.random.default_rng(0)
    rows = [(i, j) for i in range(28) for j in range(i)]
    planted = np.array([0 in pair for pair in rows])
    found, false = [], []
    for _ in range(40):
        logs = generator.normal(0, 0.1, (12, 28)) + generator.normal(0, 0.3, (12, 1))
        logs[:, 0] += math.log(2)
        differs = joint_test(*pairs_of(logs, rows)).p_values < 0.05
        found.append(differs[planted].all())
        false.append(differs[~planted].any())
    assert np.mean(found) >= 0.95
    assert np.mean(false) <= 0.1


@pytest.mark.parametrize("skewed", [False, True])
def test_no_difference_among_many_is_no_difference(skewed: bool) -> None:
    """Family-wise error of 300 families of all pairs of 8 equal rows: at most 5 %, standard error 1.3 %."""
    generator = np.random.default_rng(1)
    rows = [(i, j) for i in range(8) for j in range(i)]
    false = []
    for _ in range(300):
        own = generator.exponential(0.3, (10, 8)) if skewed else generator.normal(0, 0.1, (10, 8))
        logs = own + generator.normal(0, 0.5, (10, 1))
        false.append((joint_test(*pairs_of(logs, rows)).p_values < 0.05).any())
    assert np.mean(false) <= 0.09


def an_estimate(n: int, deviation: float) -> Estimate:
    """Of prompts of equal weight: each one's leverage is 1 / n."""
    values = np.linspace(-1, 1, n)
    return Estimate(0.0, deviation * values / values.std(ddof=1) / (1 - 1 / n))


@pytest.mark.parametrize(("n", "n_families"), [(6, 400), (12, 300), (20, 150)])
def test_the_minimum_detectable_difference_is_found_80_times_in_a_hundred(n: int, n_families: int) -> None:
    """What one run states is planted in the next, one of 20 comparisons of the very test: standard error 2 to 3 %."""
    empty = np.random.default_rng(n).normal(0, 0.05, (n_families, n, 20))
    tests = [joint_test(*against_one(values)) for values in empty[:5]]
    reach = float(
        np.median([reach_of(values, one.critical) for values, one in zip(empty[:5], tests, strict=True)])
    )
    estimates = [log_ratio(*(side[:, 0] for side in against_one(values))) for values in empty]
    stated = [minimum_detectable_difference(one, reach) or 0.0 for one in estimates if one]
    empty[:, :, 0] += np.roll(np.log1p(stated), 1)[:, None]
    found = [joint_test(*against_one(values)).p_values[0] < 0.05 for values in empty]
    assert 0.74 <= np.mean(found) <= 0.87


def test_the_minimum_detectable_difference_allows_for_what_is_not_known_of_the_deviation() -> None:
    """Of 1,000 prompts 0.84 errors beyond the critical value; of 8, drawn: this run's s, that run's mean and error."""
    critical = 3.0
    many, some = (reach_of(np.random.default_rng(0).normal(size=(n, 1)), critical) for n in (1000, 8))
    assert many == pytest.approx(critical + 0.8416, rel=0.005)
    shift = np.array([some]) * np.sqrt(np.random.default_rng(1).chisquare(7, 200_000) / 7)
    t = (np.random.default_rng(2).normal(size=200_000) + shift) / np.sqrt(
        np.random.default_rng(3).chisquare(7, 200_000) / 7
    )
    assert np.mean(t > critical * math.sqrt(8 / 7)) == pytest.approx(0.8, abs=0.01)


def test_nothing_is_detectable_with_too_few_prompts() -> None:
    assert minimum_detectable_difference(an_estimate(5, 0.05), math.inf) is None
    assert minimum_detectable_difference(Estimate(0.0, np.zeros(1)), 2.0) is None


def test_planning_and_its_inverse_agree() -> None:
    n = prompts_needed(0.03, 0.05)
    values = np.random.default_rng(0).normal(0, 0.05, (n, 1))
    reach = reach_of(values, joint_test(*against_one(values)).critical)
    assert minimum_detectable_difference(an_estimate(n, 0.05), reach) == pytest.approx(0.03, rel=0.06)
    assert prompts_needed(0.03, 0.05, level=SHARE / 28) > 1.5 * n
    assert prompts_needed(1.0, 0.001) == 6, "fewer prompts can show nothing"


def seed_cells(factors: list[float], base: Array) -> list[tuple[list[float], list[float]]]:
    return [((base * factor).tolist(), [1.0] * len(base)) for factor in factors]


def test_a_seed_effect_widens_the_interval() -> None:
    """Two seeds that differ leave more doubt than one; prompts alone cannot tell."""
    base = np.random.default_rng(0).uniform(1, 2, 30)
    theirs = seed_cells([1.0], base)
    one, two = (compare_seeds(seed_cells(factors, base), theirs) for factors in ([0.4], [0.4, 0.6]))
    assert one.ratio.value == pytest.approx(1 / 0.4)
    assert one.ratio.low is None, "a constant ratio has no dispersion to judge by"
    assert two.ratio.value == pytest.approx(2 / (0.4 + 0.6))
    assert two.ratio.low is not None
    assert two.ratio.high is not None
    assert two.ratio.low < 2 < two.ratio.high, "two seeds say little"
    assert two.ratio.high / two.ratio.low > 10


def test_paired_seeds_take_out_what_they_share() -> None:
    """Seeds differ by 20 %, the objectives by 5 % within each: pairs see it, others do not."""
    generator = np.random.default_rng(2)
    base, shared = generator.uniform(1, 2, 40), [0.8, 1.0, 1.2, 0.9, 1.1]
    ours = seed_cells(
        [0.95 * factor * generator.normal(1, 0.005) for factor in shared], base * generator.normal(1, 0.02, 40)
    )
    theirs = seed_cells(shared, base)
    assert compare_seeds(ours, theirs, paired=True).p_value < 0.01
    assert compare_seeds(ours, theirs).p_value > 0.2


def test_intervals_over_seeds_and_prompts_hold_the_truth() -> None:
    """Three seeds and 40 prompts, both with effects: 95 % rather exceeded than missed."""
    generator = np.random.default_rng(3)
    held = []
    for _ in range(300):
        sides = []
        for _ in range(2):
            logs = (
                generator.normal(0, 0.03, (3, 1))
                + generator.normal(0, 0.1, (1, 40))
                + generator.normal(0, 0.05, (3, 40))
            )
            sides.append([(np.exp(row).tolist(), [1.0] * 40) for row in logs])
        ratio = compare_seeds(*sides).ratio
        held.append(ratio.low is not None and ratio.high is not None and ratio.low <= 1 <= ratio.high)
    assert 0.92 <= np.mean(held) <= 0.995


def test_sides_of_different_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        compare_seeds([([1.0], [1.0])], [([1.0, 2.0], [1.0, 1.0])])


def test_a_ratio_that_cannot_be_taken_leaves_no_estimate() -> None:
    assert log_ratio([0.0], [1.0]) is None
