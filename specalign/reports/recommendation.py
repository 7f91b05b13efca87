"""Which drafter to use, as data and as sentences."""

from __future__ import annotations

from collections.abc import Sequence

from specalign.analysis.decision import Decision, decide, standing
from specalign.analysis.families import Family
from specalign.analysis.speeds import Speeds, group_of
from specalign.reports.content import Paragraph
from specalign.reports.rows import at, full_name, temperatures_of
from specalign.reports.tables import interval, number
from specalign.results import BenchmarkResult, SummaryRow

NAMED = 4
"""Rows named before the rest are counted."""


def recommendation(result: BenchmarkResult, speeds: Speeds, pairs: Family) -> list[Paragraph]:
    """A sentence or two a temperature; ``pairs``: what differs from what."""
    lines = [
        Paragraph(_sentence(decision, result, speeds, pairs), f"Temperature {temperature:g}:")
        for temperature in temperatures_of(result.rows)
        if (decision := decide(result.rows, temperature))
    ]
    return lines or [Paragraph("No speed-up could be computed: there are no finished rows to compare.")]


def _sentence(decision: Decision, result: BenchmarkResult, speeds: Speeds, pairs: Family) -> str:
    best = decision.best
    own = [row for row in at(result.rows, decision.temperature) if row.speedup is not None]
    measured = interval(best.speedup_joint or best.speedup, unit="x")
    name, same, trained = full_name(best), _rivals(best, own, speeds, pairs), _best_trained(best, own)
    if decision.use:
        return f"use {name}: {measured} the plain target's speed{same}.{_standing(best)}"
    if standing(best) == "slower":
        return (
            f"keep the plain target: nothing is faster than the plain target on this machine. The best, {name}, "
            f"runs at {measured}{same}.{_standing(best)}{trained}"
        )
    few = "" if pairs.can_show or not pairs.n_prompts else _too_few(pairs)
    return f"keep the plain target. The best, {name}, is not shown to differ from it: {measured}{same}.{few}{trained}"


def _too_few(pairs: Family) -> str:
    return (
        f" {pairs.n_prompts} prompts cannot show any difference, however large: no p-value below "
        f"{pairs.smallest_p:.2g} is possible."
    )


def _rivals(best: SummaryRow, rows: Sequence[SummaryRow], speeds: Speeds, pairs: Family) -> str:
    """The rows that are not shown to be slower than the best, and what difference would have been."""
    found = {full_name(row): pairs.pair(group_of(best), group_of(row)) for row in rows if row is not best}
    same = {name: pair for name, pair in found.items() if pair is not None and not pair.differs}
    if not same or not pairs.can_show:
        return ""
    names = list(same)[:NAMED]
    rest = len(same) - len(names)
    text = ", ".join(names) + (f" and {rest} more" if rest else "")
    are = "is" if len(same) == 1 else "are"
    shown = [pair.detectable for pair in same.values() if pair.detectable is not None]
    bound = f" (minimum detectable difference {max(shown):.0%})" if shown else ""
    return f"; {text} {are} not shown to differ from it on these prompts{bound}"


def _best_trained(best: SummaryRow, rows: Sequence[SummaryRow]) -> str:
    models = [row for row in rows if row.kind == "model" and row is not best]
    if best.kind == "model" or not models:
        return ""
    row = max(models, key=lambda row: row.speedup.value if row.speedup else 0.0)
    measured = interval(row.speedup_joint or row.speedup, unit="x")
    return f" The fastest trained drafter, {full_name(row)}, runs at {measured}.{_standing(row)}"


def _standing(row: SummaryRow) -> str:
    """Why: the acceptance rate reached and needed, and what a step costs."""
    if row.alpha_counted is None:
        return ""
    accepted = f" Its drafts are accepted at a rate of {number(row.alpha_counted.value)}"
    if row.c is None or row.verify_ratio is None:  # drafts of no one length have no one break-even
        return f"{accepted}."
    need = (
        "no acceptance rate would do"
        if row.break_even_alpha is None
        else f"break-even is {row.break_even_alpha:.2f}"
    )
    verifying = f"verifying {row.gamma + 1} positions {row.verify_ratio:.2f} target calls"
    return f"{accepted}, {need} (a draft token costs {row.c:.2f} and {verifying})."


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
