"""Intervals: known values, degenerate samples, pairing, coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from specalign.metrics.statistics import Array, Times, log_ratio, ratio_interval
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


@given(
    tokens=arrays(float, 8, elements=st.floats(1, 60)), paces=arrays(float, 8, elements=st.floats(0.01, 0.2))
)
def test_an_influence_is_what_a_prompts_weight_moves(tokens: Array, paces: Array) -> None:
    """n d log / d weight, by central differences, over 1 - the prompt's share, less the mean."""
    seconds = tokens * paces
    found = log_ratio(seconds, tokens)
    assert found
    steps = 1e-5 * np.eye(8)
    up, down = (np.log((weights @ seconds) / (weights @ tokens)) for weights in (1 + steps, 1 - steps))
    share = (seconds / seconds.sum() + tokens / tokens.sum()) / 2
    expected = 8 * (up - down) / 2e-5 / (1 - share)
    assert found.influence == pytest.approx(expected - expected.mean(), rel=1e-4, abs=1e-6)


def test_seconds_at_lengths_are_those_of_the_request_where_lengths_agree_and_free_of_them_where_not() -> None:
    """Outputs half as long at the same pace cost the same at common lengths; whole requests look slower a token."""
    generator = np.random.default_rng(0)
    lengths, prefill = generator.integers(20, 60, 12).astype(float), generator.uniform(0.5, 1.5, 12)
    pace = generator.uniform(0.04, 0.06, 12)
    plain = Times(prefill, pace * lengths, lengths)
    half = Times(prefill, pace * lengths / 2, lengths / 2)
    assert plain.seconds_at(lengths) == pytest.approx(prefill + pace * lengths)
    assert half.seconds_at(lengths) == pytest.approx(prefill + pace * lengths)
    whole, short = plain.whole, half.whole
    assert whole
    assert short
    assert short.log > whole.log + 0.1


def test_the_standard_error_is_hc3() -> None:
    """Of a mean (denominators 1): sqrt(sum (e / (1 - 1/n))^2) / n, over the mean since it is of the logarithm."""
    values = np.random.default_rng(0).uniform(1, 2, 9)
    found = log_ratio(values, np.ones(9))
    assert found
    error = values - values.mean()
    leverage = (values / values.sum() + 1 / 9) / 2
    z = error / values.mean() / (1 - leverage)
    assert found.standard_error == pytest.approx(np.sqrt(np.sum((z - z.mean()) ** 2)) / 9)
    assert found.standard_error == pytest.approx(values.std(ddof=1) / values.mean() / np.sqrt(8), rel=0.02)
    assert found.deviation == pytest.approx(found.standard_error * np.sqrt(8))


def test_bounds_of_a_share_stay_in_0_to_1() -> None:
    found = ratio_interval([9, 10, 10, 10], [10] * 4, share=True)
    assert found
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.value < found.high < 1


def test_pairing_removes_what_prompts_have_in_common() -> None:
    """Prompts differ tenfold in length, the method is twice as fast on each: the paired interval is narrow."""
    generator = np.random.default_rng(0)
    plain = generator.uniform(1, 10, 40)
    ours = plain / 2 * generator.normal(1, 0.01, 40)
    sides = [log_ratio(seconds, np.ones(40)) for seconds in (plain, ours)]
    assert sides[0]
    assert sides[1]
    paired = (sides[0] - sides[1]).interval()
    assert paired.low is not None
    assert paired.high is not None
    assert paired.value == pytest.approx(2, abs=0.02)
    assert paired.high - paired.low < 0.02


@pytest.mark.parametrize("n_prompts", [6, 12, 24, 40])
def test_95_percent_intervals_cover_the_truth_about_as_often_as_they_say(n_prompts: int) -> None:
    """2,000 runs of prompts whose lengths and paces vary; benchmarks/simulate_statistics.py: of the published runs'."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(10, 60, (2000, n_prompts))
    seconds = tokens / 20 * generator.lognormal(-0.5 * 0.2**2, 0.2, tokens.shape)
    found = [ratio_interval(*pair) for pair in zip(seconds.tolist(), tokens.tolist(), strict=True)]
    hits = sum(
        one is not None and one.low is not None and one.high is not None and one.low <= 1 / 20 <= one.high
        for one in found
    )
    assert 0.93 <= hits / len(found) <= 0.97
