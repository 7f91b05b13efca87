"""What differs from what in a run: families of comparisons, each tested as a whole, by one set of functions.

Family (a), every row against the plain target, decides what to use; family (b), all pairs of rows of a temperature,
decides what differs. Each spans all temperatures and is corrected as one (docs/metrics.md, "Joint tests").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from specalign.analysis.speeds import Group, Speeds, plain_of
from specalign.metrics.comparisons import LEVEL, joint_test, minimum_detectable_difference, reach_of
from specalign.metrics.statistics import Array, Estimate, log_ratio
from specalign.results import Interval


@dataclass(frozen=True)
class Comparison:
    """Two methods, or two halves of one, paired by prompt."""

    first: Group
    second: Group
    prompts: Sequence[str]
    seconds: tuple[Array, Array]
    """Of the second and of the first at the plain target's lengths, an entry a prompt."""
    estimate: Estimate
    """log(seconds of the second / of the first)."""
    p_value: float = 1.0
    """Adjusted for all comparisons of its family."""
    critical: float = float("inf")
    """Standard errors beyond which the family calls a comparison different."""
    reach: float = float("inf")
    """Deviations (s / sqrt(n)) that a true difference must be away from 0 to be found with 80 % power."""

    @property
    def differs(self) -> bool:
        """Whether the two differ beyond what chance gives in any of the family's comparisons."""
        return self.p_value < LEVEL

    @property
    def ratio(self) -> Interval:
        """How many times as fast the first is, with bounds that hold for the whole family at once."""
        return self.estimate.interval(self.critical)

    @property
    def detectable(self) -> float | None:
        """Smallest relative difference that this test would show (power 80 %)."""
        return minimum_detectable_difference(self.estimate, self.reach)


@dataclass(frozen=True)
class Family:
    """Comparisons that are corrected together."""

    comparisons: list[Comparison] = field(default_factory=list)
    smallest_p: float = 1.0
    """What a p-value is at least with so few prompts, whatever was measured."""
    n_prompts: int = 0

    @property
    def can_show(self) -> bool:
        """Whether any difference, however large, could be shown with these prompts."""
        return self.smallest_p < LEVEL

    def pair(self, one: Group, other: Group) -> Comparison | None:
        """The comparison of two methods, in either order."""
        return next((found for found in self.comparisons if {found.first, found.second} == {one, other}), None)


def against_plain(speeds: Speeds) -> Family:
    """(a): every row against the plain target of its temperature."""
    found = []
    for group in speeds.drafted:
        plain = plain_of(group)
        found += _compared(group, plain, speeds.prompts(group, plain), speeds.seconds(plain, group))
    return _tested(found)


def between_rows(speeds: Speeds) -> Family:
    """(b): all pairs of rows of a temperature, the faster one first."""
    found = []
    for one, other in combinations(speeds.drafted, 2):
        if one[1] == other[1]:
            ours, theirs = speeds.seconds(one, other)
            pair = (one, other) if theirs.sum() >= ours.sum() else (other, one)
            seconds = (theirs, ours) if theirs.sum() >= ours.sum() else (ours, theirs)
            found += _compared(*pair, speeds.prompts(one, other, plain_of(one)), seconds)
    return _tested(found)


def against_itself(speeds: Speeds) -> Family:
    """A/A: each row's even repeats against its odd ones; empty where nothing was repeated."""
    found = []
    for group in speeds.generations:
        if halves := speeds.halves(group):
            found += _compared(group, group, halves[0], (halves[1], halves[2]))
    return _tested(found)


def _compared(
    first: Group, second: Group, prompts: Sequence[str], seconds: tuple[Array, Array]
) -> list[Comparison]:
    """One comparison, none where a side has no seconds."""
    estimate = log_ratio(*seconds)
    return [Comparison(first, second, prompts, seconds, estimate)] if estimate else []


def _tested(comparisons: Sequence[Comparison]) -> Family:
    if not comparisons:
        return Family()
    place = {name: index for index, name in enumerate(dict.fromkeys(p for c in comparisons for p in c.prompts))}
    theirs, ours, influence = (np.full((len(place), len(comparisons)), np.nan) for _ in range(3))
    for column, one in enumerate(comparisons):
        own = [place[prompt] for prompt in one.prompts]
        theirs[own, column], ours[own, column] = one.seconds
        influence[own, column] = one.estimate.influence
    test = joint_test(theirs, ours)
    reach = reach_of(influence, test.critical)
    judged = [
        replace(one, p_value=float(p_value), critical=test.critical, reach=reach)
        for one, p_value in zip(comparisons, test.p_values, strict=True)
    ]
    return Family(judged, test.smallest_p, len(place))
