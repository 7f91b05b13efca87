"""Confidence intervals: BCa bootstrap over prompts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import bootstrap

from specalign.results import Interval

RESAMPLES = 2000
CONFIDENCE = 0.95


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0
) -> Interval | None:
    """sum(numerators) / sum(denominators) with its 95 % interval, pairs resampled together.

    One pair a prompt. None where the denominators sum to 0.
    """
    return _interval(_ratio, (numerators, denominators), seed)


def ratio_of_ratios_interval(
    baseline: tuple[Sequence[float], Sequence[float]],
    method: tuple[Sequence[float], Sequence[float]],
    *,
    seed: int = 0,
) -> Interval | None:
    """(sum a / sum b) / (sum c / sum d) with its 95 % interval for baseline = (a, b) and method = (c, d).

    With seconds over tokens on both sides this is a speed-up paired by prompt: entry i of all four sequences
    belongs to prompt i, and prompts are resampled whole. None where it is not defined.
    """
    return _interval(_ratio_of_ratios, (*baseline, *method), seed)


def _ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    return a.sum(axis) / b.sum(axis)


def _ratio_of_ratios(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, axis: int = -1) -> np.ndarray:
    return _ratio(a, b, axis) / _ratio(c, d, axis)


def _interval(
    statistic: Callable[..., np.ndarray], data: Sequence[Sequence[float]], seed: int
) -> Interval | None:
    """BCa (Efron 1987); without bounds for a single prompt or a statistic that no resample changes."""
    columns = [np.asarray(column, dtype=float) for column in data]
    if not len(columns[0]):
        return None
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")  # scipy warns of degenerate data, which NaN bounds say as well
        value = float(statistic(*columns))
        if not math.isfinite(value):
            return None
        if len(columns[0]) < 2:
            return Interval(value)
        result = bootstrap(
            columns, statistic, paired=True, vectorized=True, method="BCa",
            n_resamples=RESAMPLES, confidence_level=CONFIDENCE, rng=np.random.default_rng(seed),
        )  # fmt: skip
    low, high = (float(bound) for bound in result.confidence_interval)
    return Interval(value, low, high) if math.isfinite(low) and math.isfinite(high) else Interval(value)
