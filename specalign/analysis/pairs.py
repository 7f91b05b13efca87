"""The pairs of a run's rows as a table: which is how many times as fast, and whether that is shown."""

from __future__ import annotations

from collections.abc import Sequence

from specalign.analysis.families import Comparison, Family, between_rows
from specalign.analysis.speeds import Group, Speeds
from specalign.metrics.comparisons import prompts_needed
from specalign.metrics.statistics import critical_level

MOST = 10
"""Pairs of a temperature that are shown; the rest are counted."""
WANTED = 0.03
"""Relative difference for which the needed prompts are stated."""
HEADER = ["faster", "slower", "times as fast", "p", "verdict", "smallest difference that would show"]


def pair_name(group: Group, speeds: Speeds, symbol: str = "gamma") -> str:
    """Method and draft length."""
    bound = "≤" if group in speeds.adaptive else "="
    return f"{group[0]} ({symbol} {bound} {group[2]})" if group[2] else group[0]


def pairs_at(family: Family, temperature: float) -> list[Comparison]:
    """The pairs of a temperature, the largest difference first, those that are shown before those that are not."""
    own = [found for found in family.comparisons if found.first[1] == temperature]
    return sorted(own, key=lambda found: (not found.differs, -found.estimate.log))


def cells(found: Comparison, speeds: Speeds, symbol: str = "gamma") -> list[str]:
    """A line of the table."""
    ratio = found.ratio
    bounds = "" if ratio.low is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return [
        pair_name(found.first, speeds, symbol),
        pair_name(found.second, speeds, symbol),
        f"{ratio.value:.2f}x{bounds}",
        f"{found.p_value:.2g}",
        "differs" if found.differs else "not shown to differ",
        "–" if found.detectable is None else f"{found.detectable:.0%}",
    ]


def told(family: Family, own: Sequence[Comparison], n_shown: int) -> str:
    """What the table does not show, and what it can show at all."""
    differ = sum(found.differs for found in own)
    text = (
        f"{differ} of {len(own)} pairs differ; all {len(family.comparisons)} pairs of the run are tested together, "
        f"and {family.n_prompts} prompts give p >= {family.smallest_p:.2g}"
    )
    if not family.can_show:
        text += ", so that nothing can be shown"
    return text + (
        f". {len(own) - n_shown} pairs of smaller differences are not listed." if len(own) > n_shown else "."
    )


def needed(found: Comparison) -> int:
    """Prompts that would show 3 % between two methods of this dispersion, by a test as strict."""
    n = len(found.estimate.influence)
    return prompts_needed(WANTED, found.estimate.deviation, level=critical_level(found.critical, n))


def pair_lines(speeds: Speeds) -> list[str]:
    """For a terminal: a table a temperature."""
    family = between_rows(speeds)
    lines: list[str] = []
    for temperature in speeds.temperatures:
        own = pairs_at(family, temperature)
        if not own:
            continue
        shown = own[:MOST]
        table = [HEADER, *(cells(found, speeds) for found in shown)]
        widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
        lines += ["", f"Differences in speed at temperature {temperature:g}, paired by prompt:"]
        lines += [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        lines.append(f"  {told(family, own, len(shown))}")
        if family.can_show:
            most = max(shown, key=lambda found: found.estimate.deviation)
            lines.append(
                f"  {WANTED:.0%} between {pair_name(most.first, speeds)} and {pair_name(most.second, speeds)} would "
                f"take {needed(most)} prompts (deviation {most.estimate.deviation:.3f}, all pairs tested together)."
            )
    return lines
