"""Pooled ratios, what each prompt contributes to them, and their 95 % intervals.

A figure is estimated on a logarithm, to first order as a mean over prompts (the linearisation of Woodruff, 1971, as
survey sampling uses it for ratios). docs/metrics.md says why, benchmarks/simulate_statistics.py how well it covers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from specalign.results import Interval

CONFIDENCE = 0.95
NO_VARIATION = 1e-10
"""Standard error of a logarithm below which prompts do not differ but by rounding."""

SMALLEST = 1e-6
"""A lone prompt has all of a sum."""

Array = NDArray[np.float64]
Cells = tuple[Sequence[float], Sequence[float]]
"""Numerators and denominators, one of each a prompt (such as seconds and tokens)."""


@dataclass(frozen=True)
class Estimate:
    """The logarithm of a figure of some prompts."""

    log: float
    influence: Array
    """What each prompt moves it by, to first order and times their number (:func:`log_ratio`); they sum to 0."""

    def __sub__(self, other: Estimate) -> Estimate:
        """Of the figures' ratio, paired by prompt."""
        return Estimate(self.log - other.log, self.influence - other.influence)

    @property
    def reversed(self) -> Estimate:
        """Of the inverse ratio."""
        return Estimate(-self.log, -self.influence)

    @property
    def standard_error(self) -> float:
        """sqrt(sum z^2) / n (HC3, MacKinnon and White 1985): for n prompts of equal weight s / sqrt(n - 1)."""
        n = len(self.influence)
        return float(np.linalg.norm(self.influence)) / n if n > 1 else math.nan

    @property
    def deviation(self) -> float:
        """sqrt(n - 1) standard errors: for prompts of equal weight their standard deviation s."""
        return self.standard_error * math.sqrt(max(1, len(self.influence) - 1))

    def interval(self, quantile: float | None = None) -> Interval:
        """exp(log), with bounds ``quantile`` standard errors away: by default Student's for 95 %, n - 1 degrees."""
        reach = self._reach(quantile)
        return _interval(math.exp(self.log), *(_exp(self.log + r) for r in (-reach, reach)))

    def share(self) -> Interval:
        """The same of a figure in 0..1: its bounds are symmetric on the logit and stay in 0..1."""
        value = math.exp(self.log)
        if value >= 1:
            return Interval(value)
        logit, reach = math.log(value / (1 - value)), self._reach() / (1 - value)
        return _interval(
            value, *(1 / (1 + math.exp(-(logit + r))) for r in (-min(reach, 700), min(reach, 700)))
        )

    def _reach(self, quantile: float | None = None) -> float:
        n = len(self.influence)
        if n < 2 or self.standard_error < NO_VARIATION:
            return math.nan
        return self.standard_error * (student_quantile(n) if quantile is None else quantile)  # inf: no bounds


def student_quantile(n: int) -> float:
    """Student's quantile of a two-sided 95 % interval over n prompts."""
    return float(student.ppf((1 + CONFIDENCE) / 2, n - 1))


def critical_level(critical: float, n: int) -> float:
    """Two-sided level of Student's test whose critical value is this many standard errors."""
    return float(2 * student.sf(critical, n - 1))


def log_ratio(numerators: ArrayLike, denominators: ArrayLike) -> Estimate | None:
    """log(sum a / sum b), a prompt an entry. None where a sum is not positive.

    z_i = n (a_i / sum a - b_i / sum b) / (1 - h_i), less their mean; h_i is the mean of the prompt's shares of both
    sums. The divisor undoes that a prompt draws the ratio to itself: z_i / n is what leaving it out changes.
    """
    a, b = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    total, other = a.sum(), b.sum()
    if not (total > 0 and other > 0):
        return None
    shares = a / total, b / other
    influence = len(a) * (shares[0] - shares[1]) / np.maximum(1 - (shares[0] + shares[1]) / 2, SMALLEST)
    return Estimate(math.log(total / other), influence - influence.mean())


@dataclass(frozen=True)
class Times:
    """Of one method, an entry a prompt."""

    prefill_s: Array
    decode_s: Array
    n_tokens: Array

    @property
    def whole(self) -> Estimate | None:
        """log of whole seconds per token."""
        return log_ratio(self.prefill_s + self.decode_s, self.n_tokens)

    @property
    def decoding(self) -> Estimate | None:
        """log of decode seconds per token."""
        return log_ratio(self.decode_s, self.n_tokens)

    def seconds_at(self, lengths: Array) -> Array:
        """Seconds of each prompt at these lengths: prefill + d L + (decode - d tokens) (sum L / sum tokens).

        With d = sum decode / sum tokens: they sum up to sum prefill + d sum L, and vary over prompts as that does.
        Where the outputs have these lengths (the plain target's), as at temperature 0, prefill + decode.
        """
        tokens = self.n_tokens.sum()
        if not (tokens > 0 and lengths.sum() > 0):
            return np.full(len(lengths), math.nan)
        pace = self.decode_s.sum() / tokens
        beyond = (self.decode_s - pace * self.n_tokens) * (lengths.sum() / tokens)
        return np.asarray(self.prefill_s + pace * lengths + beyond)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, share: bool = False
) -> Interval | None:
    """sum(numerators) / sum(denominators) with its 95 % interval over prompts, one pair a prompt.

    ``share``: the figure lies in 0..1, and so do its bounds. None where the denominators sum to 0; no bounds for a
    single prompt or where prompts do not differ.
    """
    found = log_ratio(numerators, denominators)
    if found is None:
        return Interval(0.0) if len(denominators) and sum(denominators) > 0 else None
    return found.share() if share else found.interval()


def _exp(log: float) -> float:
    return math.exp(log) if log < 700 else math.inf


def _interval(value: float, low: float, high: float) -> Interval:
    return Interval(value, low, high) if math.isfinite(low) and math.isfinite(high) else Interval(value)
