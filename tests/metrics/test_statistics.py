"""Intervals: known values, degenerate samples, pairing, coverage."""

import numpy as np
import pytest

from specalign.metrics.statistics import ratio_interval, ratio_of_ratios_interval
from specalign.results import Interval


def test_a_ratio_is_of_totals() -> None:
    found = ratio_interval([1, 2, 3, 10], [1, 2, 3, 4])
    assert found
    assert found.value == 16 / 10
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.6 < found.high


@pytest.mark.parametrize(("values", "value"), [([0.25], 0.25), ([0.5, 0.5, 0.5], 0.5), ([0, 0, 0], 0)])
def test_without_variation_there_is_no_interval(values: list[float], value: float) -> None:
    assert ratio_interval(values, [1.0] * len(values)) == Interval(value)


def test_nothing_to_divide_is_nothing() -> None:
    assert ratio_interval([], []) is None
    assert ratio_interval([1, 2], [0, 0]) is None


def test_intervals_are_the_same_for_the_same_seed() -> None:
    values = [0.1, 0.4, 0.3, 0.9]
    assert ratio_interval(values, [1] * 4) == ratio_interval(values, [1] * 4)
    assert ratio_interval(values, [1] * 4, seed=1) != ratio_interval(values, [1] * 4, seed=2)


def test_pairing_removes_what_prompts_have_in_common() -> None:
    """Prompts differ tenfold in length, the method is twice as fast on each: the paired interval is narrow."""
    generator = np.random.default_rng(0)
    plain = generator.uniform(1, 10, 40)
    ours = plain / 2 * generator.normal(1, 0.01, 40)
    tokens = np.ones(40)
    paired = ratio_of_ratios_interval((plain.tolist(), tokens.tolist()), (ours.tolist(), tokens.tolist()))
    assert paired
    assert paired.low is not None
    assert paired.high is not None
    assert paired.value == pytest.approx(2, abs=0.02)
    assert paired.high - paired.low < 0.02


def coverage(n_prompts: int, n_runs: int) -> float:
    """Share of simulated runs whose interval holds the true ratio of E[seconds] to E[tokens] = 1 / 20."""
    generator = np.random.default_rng(1)
    hits = 0
    for run in range(n_runs):
        tokens = generator.integers(10, 60, n_prompts)
        seconds = tokens / 20 * generator.lognormal(-0.5 * 0.2**2, 0.2, n_prompts)
        found = ratio_interval(seconds.tolist(), tokens.tolist(), seed=run)
        assert found
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1 / 20 <= found.high
    return hits / n_runs


@pytest.mark.slow
def test_95_percent_intervals_cover_the_truth_93_to_97_times_in_a_hundred() -> None:
    assert 0.93 <= coverage(n_prompts=60, n_runs=1500) <= 0.97


def test_intervals_cover_about_as_often_as_they_say() -> None:
    """A quick look: 150 runs; the binomial standard error is 0.018."""
    assert 0.89 <= coverage(n_prompts=60, n_runs=150) <= 0.99
