"""Which drafter to use, as data and as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specalign.reports.content import Paragraph
from specalign.reports.rows import at, full_name, temperatures_of
from specalign.reports.speeds import Speeds, rivals
from specalign.reports.tables import interval, number
from specalign.results import BenchmarkResult, Interval, SummaryRow

NAMED = 4
"""Rivals named before the rest are counted."""


@dataclass(frozen=True)
class Choice:
    """The fastest drafter of one temperature."""

    temperature: float
    row: SummaryRow
    speedup: Interval

    @property
    def faster(self) -> bool:
        """Whether the whole interval lies above the plain target."""
        return self.speedup.low is not None and self.speedup.low > 1

    @property
    def slower(self) -> bool:
        """Whether the whole interval lies below it."""
        return self.speedup.high is not None and self.speedup.high < 1


def choices(rows: Sequence[SummaryRow]) -> list[Choice]:
    """The row of the highest measured speed-up, a temperature each."""
    found = []
    for temperature in temperatures_of(rows):
        own = [(row.speedup.value, row) for row in at(rows, temperature) if row.speedup]
        if own:
            row = max(own, key=lambda pair: pair[0])[1]
            found.append(Choice(temperature, row, row.speedup or Interval(0.0)))
    return found


def recommendation(result: BenchmarkResult, speeds: Speeds) -> list[Paragraph]:
    """A sentence or two a temperature."""
    lines = [
        Paragraph(_sentence(choice, result.rows, speeds), f"Temperature {choice.temperature:g}:")
        for choice in choices(result.rows)
    ]
    return lines or [Paragraph("No speed-up could be computed: there are no finished rows to compare.")]


def _sentence(choice: Choice, rows: Sequence[SummaryRow], speeds: Speeds) -> str:
    own = [row for row in at(rows, choice.temperature) if row.speedup is not None]
    measured = interval(choice.speedup, unit="x")
    name = full_name(choice.row)
    same = _rivals(choice, own, speeds)
    if choice.faster:
        return f"use {name}: {measured} the plain target's speed{same}.{_standing(choice.row)}"
    trained = _best_trained(choice, own)
    if not choice.slower:
        return (
            f"keep the plain target. The best, {name}, is not distinguishable from the plain target: "
            f"{measured}{same}.{trained}"
        )
    return (
        f"keep the plain target: nothing is faster than the plain target on this machine. The best, {name}, "
        f"runs at {measured}{same}.{_standing(choice.row)}{trained}"
    )


def _rivals(choice: Choice, rows: Sequence[SummaryRow], speeds: Speeds) -> str:
    found = rivals(choice.row, [row for row in rows if _overlaps(row.speedup, choice.speedup)], speeds)
    if not found.names:
        return ""
    names = found.names[:NAMED]
    rest = len(found.names) - len(names)
    text = ", ".join(names) + (f" and {rest} more" if rest else "")
    are = "is" if len(found.names) == 1 else "are"
    bound = f" (minimum detectable difference {found.detectable:.0%})" if found.detectable is not None else ""
    return f"; {text} {are} not shown to differ from it on these prompts{bound}"


def _overlaps(one: Interval | None, best: Interval) -> bool:
    """Whether the interval of a slower row reaches into the best one's; apart, the two differ beyond doubt."""
    return one is None or one.high is None or best.low is None or one.high >= best.low


def _best_trained(choice: Choice, rows: Sequence[SummaryRow]) -> str:
    models = [row for row in rows if row.kind == "model" and row is not choice.row]
    if choice.row.kind == "model" or not models:
        return ""
    row = max(models, key=lambda row: row.speedup.value if row.speedup else 0.0)
    return f" The fastest trained drafter, {full_name(row)}, runs at {interval(row.speedup, unit='x')}.{_standing(row)}"


def _standing(row: SummaryRow) -> str:
    """Why: the acceptance rate reached and needed, and what a step costs."""
    if row.alpha_counted is None:
        return ""
    need = (
        "no acceptance rate would do"
        if row.break_even_alpha is None
        else f"break-even is {row.break_even_alpha:.2f}"
    )
    cost = ""
    if row.c is not None and row.verify_ratio is not None:
        verifying = f"verifying {row.gamma + 1} positions {row.verify_ratio:.2f} target calls"
        cost = f" (a draft token costs {row.c:.2f} and {verifying})"
    return f" Its drafts are accepted at a rate of {number(row.alpha_counted.value)}, {need}{cost}."


def setting(result: BenchmarkResult) -> list[Paragraph]:
    """On which hardware, and whether to trust it."""
    passed = [check.passed for check in result.checks]
    trust = f"{passed.count(True)} of {len(passed)} checks passed, {passed.count(False)} failed"
    if None in passed:
        trust += f", {passed.count(None)} could not be judged"
    target = f"{result.target.source} in {result.provenance.get('dtype')}"
    prompts = f"{result.provenance.get('n_prompts')} prompts"
    return [
        Paragraph(f"{processor(result)}; target {target}; {prompts}", "Measured on:"),
        Paragraph(trust if passed else "no checks: the run did not finish", "Trust:"),
    ]


def processor(result: BenchmarkResult) -> str:
    """The machine in a few words."""
    hardware = result.provenance.get("hardware", {})
    return str(hardware.get("gpu") or f"{hardware.get('cpu')}, {hardware.get('torch_threads')} threads")
