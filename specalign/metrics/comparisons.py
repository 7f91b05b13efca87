"""Comparing several methods, or several training seeds: joint tests, planning, intervals over seeds and prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import nct, norm
from scipy.stats import t as student

from specalign.metrics.statistics import NO_VARIATION, Array, Cells, Estimate, log_ratio
from specalign.results import Interval

LEVEL = 0.05
MOST_EXACT = 14
"""Prompts up to which every pattern of signs is tried: 2^13 of them."""
DRAWS = 9_999
"""Patterns drawn beside the observed one for more prompts."""
POWER = 0.8
FEW = 8
"""Prompts below which the critical value is too much a matter of chance to be taken as it is."""
SIMULATIONS = 1000
BLOCK = 256
"""Comparisons at a time, so that a table of patterns by comparisons stays small."""
ROUNDING = 1e-9

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


def joint_test(contributions: Array) -> JointTest:
    """Whether each of many logarithms is 0, tested together: max |t| over sign flips of whole prompts.

    ``contributions``: [prompts, comparisons], NaN where a prompt is missing in a comparison; column k has the mean
    log_k and t_k = log_k / se_k (:class:`~specalign.metrics.statistics.Estimate`). A pattern of signs flips a prompt
    in all columns at once; adjusted p_k is the share of patterns, the observed one among them, whose largest |t| is
    at least |t_k| (Westfall and Young 1993; Romano and Wolf 2005, single step). Exact where prompts are symmetric
    about 0 together: it holds the family-wise error whatever else differs. All 2^(n-1) patterns up to
    ``MOST_EXACT`` prompts, else ``DRAWS`` drawn ones.
    """
    known = np.isfinite(contributions)
    values = np.where(known, contributions, 0.0)
    used = known.any(axis=1)
    values, counts = values[used], known.sum(axis=0).astype(float)
    patterns = sign_patterns(int(used.sum()))
    sizes = np.sqrt(counts * np.square(values).sum(axis=0))
    largest = np.zeros(len(patterns))
    observed = np.zeros(values.shape[1])
    for start in range(0, values.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        statistics = _statistics(np.abs(patterns @ values[:, block]), sizes[block], counts[block])
        observed[block] = statistics[0]
        np.maximum(largest, statistics.max(axis=1), out=largest)
    ranked = np.sort(largest)
    n_reaching = len(ranked) - np.searchsorted(ranked, observed * (1 - ROUNDING))
    allowed = math.ceil(LEVEL * len(ranked)) - 1
    critical = float(ranked[len(ranked) - 1 - allowed]) if allowed > 0 else math.inf
    return JointTest(n_reaching / len(ranked), critical, 1 / len(ranked))


def sign_patterns(n: int) -> Array:
    """[patterns, n] of 1 and -1, the first all 1; no pattern beside its negative, which gives the same |t|."""
    if n <= MOST_EXACT:
        return np.array([(1.0, *rest) for rest in product((1.0, -1.0), repeat=max(0, n - 1))])[:, :n]
    drawn = np.random.default_rng(0).choice([1.0, -1.0], size=(DRAWS, n))
    return np.concatenate([np.ones((1, n)), drawn])


def _statistics(sums: Array, sizes: Array, counts: Array) -> Array:
    """|t| from |sum of signed contributions|: sqrt(n - 1) r / sqrt(1 - r^2), r = that over sqrt(n sum y^2)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(sizes > 0, np.minimum(sums / sizes, 1.0), 0.0)
        found = np.sqrt(np.maximum(counts - 1, 0)) * share / np.sqrt(1 - share**2)
    return np.nan_to_num(found, nan=0.0, posinf=np.finfo(float).max)


def minimum_detectable_difference(estimate: Estimate, reach: float) -> float | None:
    """The smallest relative difference that a joint test shows with 80 % power; for example 0.03 for 3 %.

    exp(reach s / (c4 sqrt(n))) - 1, s the estimate's deviation over n prompts (c4: on average s falls short of the true
    one by so much), ``reach`` the family's (:func:`reach_of`). None where nothing can be shown.
    """
    n = len(estimate.influence)
    if n < 2 or not math.isfinite(reach):
        return None
    unbiased = math.exp(math.lgamma((n - 1) / 2) - math.lgamma(n / 2)) * math.sqrt((n - 1) / 2)
    return math.expm1(min(reach * unbiased * estimate.deviation / math.sqrt(n), 700))


def reach_of(contributions: Array, critical: float) -> float:
    """Standard errors s / sqrt(n) that a true difference must be away from 0 for :func:`joint_test` to find it.

    With 80 % power: t is noncentral with n - 1 degrees of freedom. Below ``FEW`` prompts, where the critical value
    itself is a matter of chance, by simulating normal contributions with the covariance of the family's own, and
    beside them one comparison that does have a difference. Infinite where nothing can be found.
    """
    values = np.nan_to_num(contributions[np.isfinite(contributions).any(axis=1)])
    n = len(values)
    if not math.isfinite(critical) or n < 2:
        return math.inf
    if n >= FEW:
        return _root(lambda shift: _power(n, critical, shift))
    generator, patterns = np.random.default_rng(0), sign_patterns(n)
    centred = (values - values.mean(axis=0)) / math.sqrt(n - 1)
    own = generator.normal(size=(SIMULATIONS, n))
    largest = np.array(
        [_largest(patterns, mixing @ centred) for mixing in generator.normal(size=(SIMULATIONS, n, n))]
    )
    allowed = math.ceil(LEVEL * len(patterns)) - 1

    def power(shift: float) -> float:
        statistics = _flipped(own + shift / math.sqrt(n), patterns)
        reaching = np.maximum(largest, statistics) >= statistics[:, :1] * (1 - ROUNDING)
        return float(np.mean(reaching.sum(axis=1) <= allowed))

    return _root(power)


def _flipped(values: Array, patterns: Array) -> Array:
    """[comparisons, patterns] of |t| for comparisons in rows."""
    sizes = np.sqrt(values.shape[1] * np.square(values).sum(axis=1))[:, None]
    return _statistics(np.abs(values @ patterns.T), sizes, np.array([float(values.shape[1])]))


def _largest(patterns: Array, values: Array) -> Array:
    """Of each pattern the largest |t| of all columns."""
    return np.asarray(_flipped(values.T, patterns).max(axis=0))


def _root(power: Callable[[float], float]) -> float:
    """The shift at which a power that grows with it reaches 80 %."""
    high = 2.0
    while power(high) < POWER:
        high *= 2
    return float(brentq(lambda shift: power(shift) - POWER, 0, high, xtol=1e-4))


def _power(n: int, bound: float, shift: float) -> float:
    """P(t > bound) for n prompts and a true mean of ``shift`` standard errors."""
    found = float(nct.sf(bound, n - 1, shift))
    return found if math.isfinite(found) else float(norm.sf(bound - shift))


def prompts_needed(difference: float, deviation: float, *, level: float = LEVEL) -> int:
    """Prompts that show a relative ``difference`` at a two-sided ``level``, for a deviation of log ratios over prompts.

    For the largest of m comparisons take the level 0.05 / m. At least so many that a sign-flip test can reach it.
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
    influences are taken without the correction for prompts of weight, which would double the error of two.
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
    variances = [(part.standard_error * (1 - 1 / len(part.influence))) ** 2 for part in known]
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
