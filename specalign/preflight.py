"""What is looked at before a run: named checks, their findings as a table, and one error for what failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specalign.errors import UserError
from specalign.terminal import show


@dataclass(frozen=True)
class Caution:
    """The outcome of a check that found something to know, but nothing that prevents a run."""

    text: str


Check = tuple[str, Callable[[], str | Caution]]
"""(Name, what it finds); it raises UserError, with the remedy, where a run cannot work."""


@dataclass(frozen=True)
class Finding:
    """What one check came to."""

    check: str
    verdict: str
    """``ok``, ``note``, ``failed`` or ``skipped``."""
    detail: str


def examine(checks: Sequence[Check]) -> list[Finding]:
    """Carry out the checks in order. One that fails for the reason of an earlier one is skipped."""
    findings: list[Finding] = []
    for name, check in checks:
        try:
            found = check()
        except UserError as error:
            before = [finding.check for finding in findings if finding.detail == str(error)]
            detail = f"needs {before[0]!r} to pass" if before else str(error)
            findings.append(Finding(name, "skipped" if before else "failed", detail))
        else:
            verdict, detail = ("note", found.text) if isinstance(found, Caution) else ("ok", found)
            findings.append(Finding(name, verdict, detail))
    return findings


def require_passed(findings: Sequence[Finding]) -> None:
    """Raise UserError with what failed, if anything did."""
    failed = [finding for finding in findings if finding.verdict == "failed"]
    if len(failed) == 1:
        raise UserError(failed[0].detail)
    if failed:
        reasons = " · ".join(f"{finding.check}: {finding.detail}" for finding in failed)
        raise UserError(f"{len(failed)} checks failed: {reasons}")


def report(title: str, findings: Sequence[Finding]) -> None:
    """Print the table, and raise UserError where anything failed."""
    print_findings(title, findings)
    failed = [finding.check for finding in findings if finding.verdict == "failed"]
    if failed:
        raise UserError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}; see the table")


def print_findings(title: str, findings: Sequence[Finding]) -> None:
    """The findings as a table on standard output."""
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "", "found", title=title, title_justify="left")
    colours = {"ok": "green", "note": "yellow", "failed": "bold red", "skipped": "dim"}
    for finding in findings:
        colour = colours[finding.verdict]
        table.add_row(finding.check, Text(finding.verdict, colour), finding.detail)
    show(table)
