"""Which differences between the methods of a run are real, and how many prompts would show smaller ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from specalign.analysis.summary import seconds_per_token
from specalign.metrics.comparisons import (
    holm,
    log_ratio_deviation,
    minimum_detectable_difference,
    paired_p_value,
    prompts_needed,
)
from specalign.metrics.statistics import ratio_of_ratios_interval
from specalign.results import GenerationRecord, Interval

SIGNIFICANT = 0.05
WANTED = 0.03
"""Relative difference for which the needed prompts are stated."""


@dataclass(frozen=True)
class Difference:
    """Two methods, paired by prompt."""

    first: str
    second: str
    ratio: float
    """Seconds per token of the first over the second's: geometric mean over prompts."""
    p_value: float
    """Holm-adjusted over all pairs."""
    detectable: float | None
    """Smallest relative difference that these prompts would show (power 80 %)."""
    deviation: float | None
    """Standard deviation over prompts of the log ratio."""

    @property
    def significant(self) -> bool:
        """Whether the two differ."""
        return self.p_value < SIGNIFICANT


Setting = tuple[str, float]
"""Method (with its gamma) and temperature."""


@dataclass(frozen=True)
class SelfComparison:
    """A method against itself."""

    method: str
    temperature: float
    ratio: Interval
    """Seconds per token of the even repeats over the odd ones': means over prompts."""
    p_value: float
    """Holm-adjusted over all methods and temperatures."""


def differences(records: Sequence[GenerationRecord]) -> list[Difference]:
    """All pairs of methods among records of one temperature, by seconds per token."""
    speeds = seconds_per_token(records)
    logs, p_values = {}, {}
    for pair in combinations(speeds, 2):
        shared = [prompt for prompt in speeds[pair[0]] if prompt in speeds[pair[1]]]
        first, second = ([math.log(speeds[method][prompt]) for prompt in shared] for method in pair)
        logs[pair] = [a - b for a, b in zip(first, second, strict=True)]
        p_values[pair] = paired_p_value(first, second)
    adjusted = holm(p_values)
    return [
        Difference(
            *pair,
            math.exp(sum(own) / len(own)),
            adjusted[pair],
            minimum_detectable_difference(own),
            log_ratio_deviation(own),
        )
        for pair, own in logs.items()
        if own
    ]


def self_comparisons(records: Sequence[GenerationRecord]) -> list[SelfComparison]:
    """Each method's even repeats against its odd ones (A/A), paired by prompt; empty where nothing was repeated.

    Nothing sets the two apart but chance, so a difference that is called real is an error of the measurement.
    """
    found: dict[Setting, tuple[Interval, float]] = {}
    for temperature in sorted({record.temperature for record in records}):
        first, second = (
            seconds_per_token(
                [
                    record
                    for record in records
                    if record.status == "ok" and record.temperature == temperature and record.repeat % 2 == half
                ]
            )
            for half in (0, 1)
        )
        for method, ours in first.items():
            shared = [prompt for prompt in ours if prompt in second.get(method, {})]
            if not shared:
                continue
            a, b = ([speeds[prompt] for prompt in shared] for speeds in (ours, second[method]))
            p_value = paired_p_value(*([math.log(value) for value in half] for half in (a, b)))
            ones = [1.0] * len(shared)
            if ratio := ratio_of_ratios_interval((a, ones), (b, ones)):
                found[method, temperature] = ratio, p_value
    adjusted = holm({setting: p_value for setting, (_, p_value) in found.items()})
    return [SelfComparison(*setting, ratio, adjusted[setting]) for setting, (ratio, _) in found.items()]


def difference_lines(records: Sequence[GenerationRecord]) -> list[str]:
    """A line a pair: the verdict, what would not show, and how many prompts would show 3 %."""
    if not records:
        return []
    lines = [f"Differences at temperature {records[0].temperature:g} (seconds per token, paired by prompt):"]
    for found in differences(records):
        verdict = f"{found.ratio:.2f}x" if found.significant else "no significant difference"
        line = f"  {found.first} against {found.second}: {verdict} (Holm-adjusted p = {found.p_value:.2g}"
        if found.detectable is not None and found.deviation is not None:
            line += f"; differences below {found.detectable:.1%} would not show, {WANTED:.0%} needs "
            line += (
                f"{prompts_needed(WANTED, found.deviation)} prompts at this deviation of {found.deviation:.3f}"
            )
        lines.append(f"{line})")
    return lines
