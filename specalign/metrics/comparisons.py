"""Comparing several methods, or several training seeds: corrections, planning, hierarchical intervals."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, permutation_test

from specalign.metrics.statistics import CONFIDENCE, RESAMPLES
from specalign.results import Interval

Cells = tuple[Sequence[float], Sequence[float]]
"""Numerators and denominators, one of each a prompt (such as seconds and tokens)."""


Name = TypeVar("Name", bound=Hashable)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Holm's step-down adjusted p-values (Holm 1979): reject those below the level, whatever else is true.

    Sorted ascending, p_(k) is multiplied by m - k + 1; adjusted values never decrease and stay at most 1.
    """
    adjusted: dict[Name, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def paired_p_value(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p-value that a and b have the same mean, entry i of both being of prompt i.

    A permutation test on the signs of the differences: exact below 2,000 sign patterns, sampled above. 1 for
    fewer than two prompts.
    """
    if len(a) < 2:
        return 1.0
    result = permutation_test(
        (np.asarray(a, dtype=float), np.asarray(b, dtype=float)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def minimum_detectable_difference(log_ratios: Sequence[float], *, power: float = 0.8) -> float | None:
    """The smallest relative difference of two methods that these prompts would show, for example 0.03 for 3 %.

    ``log_ratios`` holds log(time of one / time of the other), one a prompt. Normal approximation:
    exp((z_(0.975) + z_power) s / sqrt(n)) - 1. None below two prompts.
    """
    deviation = log_ratio_deviation(log_ratios)
    return None if deviation is None else float(np.expm1(_reach(power) * deviation / np.sqrt(len(log_ratios))))


def log_ratio_deviation(log_ratios: Sequence[float]) -> float | None:
    """Standard deviation over prompts, for :func:`prompts_needed`; None below two prompts."""
    return float(np.std(log_ratios, ddof=1)) if len(log_ratios) > 1 else None


def prompts_needed(difference: float, deviation: float, *, power: float = 0.8) -> int:
    """Prompts that show a relative ``difference``, for a standard deviation of log ratios between prompts."""
    return max(2, int(np.ceil((_reach(power) * deviation / np.log1p(difference)) ** 2)))


@dataclass(frozen=True)
class SeedComparison:
    """Two objectives over their training seeds."""

    ratio: Interval
    p_value: float
    """Two-sided, that the ratio is 1: twice the smaller share of resamples on either side of it."""
    detectable: float | None
    """Smallest relative difference that these seeds and prompts would show (power 80 %); None where a figure is 0."""


def compare_seeds(ours: Sequence[Cells], theirs: Sequence[Cells], *, seed: int = 0) -> SeedComparison:
    """theirs' pooled ratio over ours', with a 95 % interval over training seeds and prompts.

    With seconds and tokens as cells this is how many times faster ours is. One entry a training seed on each
    side; prompt i is the same one everywhere. A hierarchical percentile bootstrap: seeds are resampled on each
    side, then prompts, the same ones on both sides. With one seed on a side only prompts vary there; with n
    seeds the variance between seeds is understated by 1 / n.
    """
    generator = np.random.default_rng(seed)
    sides = [np.asarray(side, dtype=float) for side in (theirs, ours)]  # [seeds, 2, prompts]
    n_prompts = sides[0].shape[-1]
    if n_prompts != sides[1].shape[-1] or n_prompts == 0:
        raise ValueError("both sides need the same prompts, at least one")
    value = _pooled(sides[0]) / _pooled(sides[1])
    draws = np.empty(RESAMPLES)
    for place in range(RESAMPLES):
        prompts = generator.integers(n_prompts, size=n_prompts)
        above, below = (
            _pooled(side[generator.integers(len(side), size=len(side))][..., prompts]) for side in sides
        )
        draws[place] = above / below
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    smaller = min(np.mean(draws <= 1), np.mean(draws >= 1))
    p_value = float(np.clip(2 * smaller, 1 / RESAMPLES, 1))
    positive = np.isfinite(draws).all() and (draws > 0).all()
    detectable = float(np.expm1(_reach(0.8) * np.std(np.log(draws)))) if positive else None
    return SeedComparison(Interval(value, float(low), float(high)), p_value, detectable)


def _pooled(cells: NDArray[np.float64]) -> float:
    numerator, denominator = cells.sum(axis=(0, 2))
    return float(numerator / denominator)


def _reach(power: float) -> float:
    return float(norm.ppf((1 + CONFIDENCE) / 2) + norm.ppf(power))
