"""Comparing several methods, or several training seeds: joint tests, planning, intervals over seeds and prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import chi2, nct, norm
from scipy.stats import t as student

from specalign.metrics.statistics import NO_VARIATION, SMALLEST, Array, Cells, Estimate, log_ratio
from specalign.results import Interval

LEVEL = 0.05
CAUTION = 4 / 3
"""By how much joint p-values exceed the share of swaps, which falls short where means alone are equal."""
SHARE = LEVEL / CAUTION
"""Of swaps, below which a joint p-value is below the level."""
MOST_EXACT = 14
"""Prompts up to which every pattern of signs is tried: 2^13 of them."""
DRAWS = 9_999
"""Patterns drawn beside the observed one for more prompts."""
POWER = 0.8
FEW = 8
"""Prompts below which the critical value is too much a matter of chance to be taken as it is."""
SIMULATIONS = 1000
QUANTILES = (np.arange(64) + 0.5) / 64
BLOCK = 64
"""Comparisons at a time, so that a table of patterns by comparisons stays in the cache."""
ROUNDING = 1e-9
MOST_APART = 1 - 1e-12
"""Largest (theirs - ours) / (theirs + ours) of positive sums."""
LARGEST = float(np.finfo(float).max)
TINY = 1e-300

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


@dataclass(frozen=True)
class JointTest:
    """What a whole family of comparisons came to."""

    p_values: Array
    """One a comparison, adjusted for all of them."""
    critical: float
    """Standard errors beyond which a comparison's adjusted p-value is below 5 %; infinite where none can be."""
    smallest_p: float
    """Below which no p-value can be with so many prompts, whatever was measured."""


def joint_test(theirs: Array, ours: Array) -> JointTest:
    """Whether each of many ratios sum theirs / sum ours is 1, tested together: max |t| over swaps within prompts.

    Both [prompts, comparisons] in seconds, NaN where a prompt is missing in a comparison. t_k = |log ratio| / standard
    error (:class:`~specalign.metrics.statistics.Estimate`). A pattern swaps both sides of some prompts, in all
    comparisons at once; adjusted p_k is ``CAUTION`` times the share of patterns, the observed one among them, whose
    largest t is at least t_k (Westfall and Young 1993, single step). Each swap's t has its own ratio and dispersion
    (Janssen 1997; Konietschke and Pauly 2014): the share is exact where the two sides can be exchanged, else right in
    the limit of many prompts. All 2^(n-1) patterns up to ``MOST_EXACT`` prompts, else ``DRAWS`` drawn ones.
    """
    known = np.isfinite(theirs) & np.isfinite(ours)
    used = known.any(axis=1)
    patterns = sign_patterns(int(used.sum()))
    sides = [np.where(known, side, 0.0)[used] for side in (theirs, ours)]
    observed = _observed(sides[0], sides[1], known[used])
    counts = known.sum(axis=0).astype(float)
    largest = np.zeros(len(patterns))
    for start in range(0, len(counts), BLOCK):
        block = slice(start, start + BLOCK)
        swapped = _swapped(sides[0][:, block], sides[1][:, block], counts[block], patterns)
        np.maximum(largest, swapped.max(axis=1), out=largest)
    largest[0] = max(largest[0], observed.max())
    ranked = np.sort(largest)
    n_reaching = len(ranked) - np.searchsorted(ranked, observed * (1 - ROUNDING))
    allowed = _allowed(len(ranked))
    critical = float(ranked[len(ranked) - 1 - allowed]) if allowed > 0 else math.inf
    return JointTest(np.minimum(1, CAUTION * n_reaching / len(ranked)), critical, min(1, CAUTION / len(ranked)))


def _allowed(n_patterns: int) -> int:
    """Most patterns that may reach a t whose p-value is below the level."""
    return math.ceil(SHARE * n_patterns) - 1


def sign_patterns(n: int) -> Array:
    """[patterns, n] of 1 and -1, the first all 1; no pattern beside its negative, which gives the same |t|."""
    if n <= MOST_EXACT:
        return np.array([(1.0, *rest) for rest in product((1.0, -1.0), repeat=max(0, n - 1))])[:, :n]
    drawn = np.random.default_rng(0).choice([1.0, -1.0], size=(DRAWS, n))
    return np.concatenate([np.ones((1, n)), drawn])


def _observed(theirs: Array, ours: Array, known: NDArray[np.bool_]) -> Array:
    """|log| over the standard error of :func:`~specalign.metrics.statistics.log_ratio`, in every comparison."""
    counts = np.maximum(known.sum(axis=0), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.abs(np.log(theirs.sum(axis=0) / ours.sum(axis=0)))
        shares = theirs / theirs.sum(axis=0), ours / ours.sum(axis=0)
        influence = counts * (shares[0] - shares[1]) / np.maximum(1 - (shares[0] + shares[1]) / 2, SMALLEST)
        centred = np.where(known, influence - influence.sum(axis=0) / counts, 0.0)
        errors = np.sqrt(np.square(centred).sum(axis=0)) / counts
        found = np.where(logs > NO_VARIATION, logs / np.where(errors > NO_VARIATION, errors, 0.0), 0.0)
    return np.nan_to_num(np.where(counts > 1, found, 0.0), nan=0.0, posinf=LARGEST)


def _swapped(theirs: Array, ours: Array, counts: Array, patterns: Array) -> Array:
    """[patterns, comparisons] of t after the swaps, with s / sqrt(n) as the standard error.

    With d = theirs - ours, m half of and S all of both sides' sum, e = sum +-d / S: the log ratio is 2 artanh e and
    z_i = (2 n / S) (+-d_i - 2 e m_i) / (1 - e^2).
    """
    total = (theirs + ours).sum(axis=0)
    total = np.where(total > 0, total, 1.0)
    difference, middle = (theirs - ours) / total, (theirs + ours) / (2 * total)
    e = np.clip(patterns @ difference, -MOST_APART, MOST_APART)
    square = e * e
    errors = patterns @ (difference * middle)
    errors *= -4 * e
    errors += np.square(difference).sum(axis=0)
    errors += square * (4 * np.square(middle).sum(axis=0))
    errors *= counts / np.maximum(counts - 1, 1)
    np.sqrt(np.maximum(errors, TINY, out=errors), out=errors)
    found = np.abs(np.arctanh(e)) * (1 - square) / errors
    return np.asarray(found * (counts > 1))


def minimum_detectable_difference(estimate: Estimate, reach: float) -> float | None:
    """The smallest relative difference that a joint test shows with 80 % power; for example 0.03 for 3 %.

    exp(reach s / sqrt(n)) - 1, s the estimate's deviation over n prompts, ``reach`` the family's (:func:`reach_of`).
    None where nothing can be shown.
    """
    n = len(estimate.influence)
    if n < 2 or not math.isfinite(reach):
        return None
    return math.expm1(min(reach * estimate.deviation / math.sqrt(n), 700))


def reach_of(influence: Array, critical: float) -> float:
    """Deviations s / sqrt(n) that a true difference must be away from 0 for another run to find it.

    With 80 % power on average over what s may be: s is a run's own, the t of another run with as many prompts is
    noncentral with n - 1 degrees of freedom. Below ``FEW`` prompts, where the critical value itself is a matter of
    chance, by simulating normal contributions with the covariance of the family's own ``influence`` ([prompts,
    comparisons], NaN where missing), and beside them one comparison that does have a difference. Infinite where nothing
    can be found.
    """
    values = np.nan_to_num(influence[np.isfinite(influence).any(axis=1)])
    n = len(values)
    if not math.isfinite(critical) or n < 2:
        return math.inf
    if n >= FEW:
        stated = np.sqrt(chi2.ppf(QUANTILES, n - 1) / (n - 1))
        return _root(lambda reach: float(np.mean(_power(n, critical, reach * stated))))
    generator, patterns = np.random.default_rng(0), sign_patterns(n)
    centred = (values - values.mean(axis=0)) / math.sqrt(n - 1)
    own = generator.normal(size=(SIMULATIONS, n))
    largest = np.array(
        [
            _flipped((mixing @ centred).T, patterns).max(axis=0)
            for mixing in generator.normal(size=(SIMULATIONS, n, n))
        ]
    )
    stated = np.sqrt(generator.chisquare(n - 1, size=(SIMULATIONS, 1)) / (n - 1))

    def power(reach: float) -> float:
        statistics = _flipped(own + reach * stated / math.sqrt(n), patterns)
        observed = statistics[:, :1] * math.sqrt(1 - 1 / n)
        reaching = np.maximum(largest, statistics) >= observed * (1 - ROUNDING)
        return float(np.mean(reaching.sum(axis=1) <= _allowed(len(patterns))))

    return _root(power)


def _flipped(values: Array, patterns: Array) -> Array:
    """[comparisons, patterns] of |t| for means of values y in rows whose signs are flipped.

    sqrt(n - 1) r / sqrt(1 - r^2), r = |sum +-y| / sqrt(n sum y^2).
    """
    n = values.shape[1]
    sizes = np.sqrt(n * np.square(values).sum(axis=1))[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(sizes > 0, np.minimum(np.abs(values @ patterns.T) / sizes, 1.0), 0.0)
        found = math.sqrt(n - 1) * share / np.sqrt(1 - share**2)
    return np.asarray(np.nan_to_num(found, nan=0.0, posinf=LARGEST))


def _root(power: Callable[[float], float]) -> float:
    """The shift at which a power that grows with it reaches 80 %."""
    high = 2.0
    while power(high) < POWER:
        high *= 2
    return float(brentq(lambda shift: power(shift) - POWER, 0, high, xtol=1e-4))


def _power(n: int, bound: float, shift: ArrayLike) -> Array:
    """P(|log| > bound standard errors), at a true mean of ``shift`` s / sqrt(n): the error is s / sqrt(n - 1)."""
    bound *= math.sqrt(n / (n - 1))
    shifts = np.asarray(shift, dtype=float)
    found = nct.sf(bound, n - 1, shifts)
    return np.asarray(np.where(np.isfinite(found), found, norm.sf(bound - shifts)))


def prompts_needed(difference: float, deviation: float, *, level: float = SHARE) -> int:
    """Prompts that show a relative ``difference`` at a two-sided ``level``, for a deviation of log ratios over prompts.

    For the largest of m comparisons take the level ``SHARE`` / m. By Student's test with the error s / sqrt(n - 1) that
    :func:`joint_test` has; at least so many that swaps within prompts can reach the level.
    """
    effect = math.log1p(difference)
    least = math.ceil(math.log2(2 / level)) + (math.log2(2 / level).is_integer())
    normal = ((norm.isf(level / 2) + norm.ppf(POWER)) * deviation / effect) ** 2
    n = max(2, least, math.ceil(normal))
    while (
        _power(n, float(student.isf(level / 2, n - 1)), effect * math.sqrt(n) / max(deviation, 1e-12)) < POWER
    ):
        n += 1
    return n


@dataclass(frozen=True)
class SeedComparison:
    """Two objectives over their training seeds."""

    ratio: Interval
    p_value: float
    """Two-sided, that the ratio is 1, by Student's t over seeds and prompts."""
    detectable: float | None
    """Smallest relative difference that these seeds and prompts would show (power 80 %) if it were the only one."""


def compare_seeds(ours: Sequence[Cells], theirs: Sequence[Cells], *, paired: bool = False) -> SeedComparison:
    """theirs' pooled ratio over ours', with a 95 % interval over training seeds and prompts.

    With seconds and tokens as cells this is how many times faster ours is. One entry a training seed on each
    side, ``paired`` where entry i of both shares its start, order and data; prompt i is the same one everywhere. The
    variance is that over prompts plus that over seeds, each by linearisation (crossed factors: Owen 2007; their sum
    counts the interaction twice and so rather exceeds the truth), the degrees of freedom are Satterthwaite's (1946).
    A side with one seed brings no variance between seeds. Seeds weigh alike, each 1 / n of the sums: their
    error is s / sqrt(n), without the correction for prompts of weight, which would exceed that of two by 41 %.
    """
    sides = [np.asarray(side, dtype=float) for side in (theirs, ours)]  # [seeds, 2, prompts]
    if sides[0].shape[-1] != sides[1].shape[-1] or sides[0].shape[-1] == 0:
        raise ValueError("both sides need the same prompts, at least one")
    prompts = _over(sides, axis=0)
    if prompts is None:
        return SeedComparison(Interval(_pooled(sides[0]) / _pooled(sides[1])), 1.0, None)
    if paired and len(sides[0]) == len(sides[1]) > 1:
        seeds = [_over(sides, axis=2)]
    else:
        seeds = [log_ratio(*side.sum(axis=2).T) for side in sides if len(side) > 1]
    known = [part for part in seeds if part]
    variances = [part.deviation**2 / len(part.influence) for part in known]
    parts = [*known, prompts] if len(prompts.influence) > 1 else known
    variances += [part.standard_error**2 for part in parts[len(known) :]]
    error = math.sqrt(sum(variances))
    if error < NO_VARIATION:
        return SeedComparison(Interval(math.exp(prompts.log)), 1.0, None)
    weights = sum(own**2 / (len(part.influence) - 1) for own, part in zip(variances, parts, strict=True))
    freedom = error**4 / weights
    quantile = float(student.isf(LEVEL / 2, freedom))
    low, high = (math.exp(prompts.log + sign * quantile * error) for sign in (-1, 1))
    p_value = 2 * float(student.sf(abs(prompts.log) / error, freedom))
    detectable = math.expm1((quantile + float(student.ppf(POWER, freedom))) * error)
    return SeedComparison(Interval(math.exp(prompts.log), low, high), p_value, detectable)


def _over(sides: Sequence[NDArray[np.float64]], axis: int) -> Estimate | None:
    """theirs over ours with the other axis summed up; None where a figure is 0."""
    summed = [side.sum(axis=axis) for side in sides]
    theirs, ours = (log_ratio(*(table if axis == 0 else table.T)) for table in summed)
    return theirs - ours if theirs and ours else None


def _pooled(cells: NDArray[np.float64]) -> float:
    numerator, denominator = cells.sum(axis=(0, 2))
    return float(numerator / denominator)
