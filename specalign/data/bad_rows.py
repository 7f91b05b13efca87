"""Rows that give no example: what is said of them, once for each kind of fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specalign.errors import UserError

PLACES = 5
"""Rows that are named for one fault."""
FAULTS = 5
"""Different faults that are told."""
SHORT = 200
"""Characters of a fault that are shown."""


@dataclass(frozen=True)
class BadRow:
    """A row that gives no example."""

    where: str
    problem: str


def listed(bad: Sequence[BadRow]) -> str:
    """``3 bad rows: line 2, line 5: not JSON; line 7: ...``: every fault once, with the rows that have it."""
    faults: dict[str, list[str]] = {}
    for row in bad:
        faults.setdefault(row.problem, []).append(row.where)
    told = [f"{_places(where)}: {problem[:SHORT]}" for problem, where in list(faults.items())[:FAULTS]]
    rest = [f"and {len(faults) - FAULTS} other faults"] if len(faults) > FAULTS else []
    return f"{len(bad)} bad row{'s' if len(bad) > 1 else ''}: {'; '.join([*told, *rest])}"


def require_usable(source: str, n_good: int, bad: Sequence[BadRow], *, skip: bool) -> None:
    """Raise UserError for bad rows; with ``skip`` only where they outnumber the good ones."""
    if not bad:
        return
    if not skip:
        rest = ", or leave such rows out with --skip-bad-rows" if len(bad) <= n_good else ""
        raise UserError(f"{source}: {listed(bad)}; mend the data{rest}")
    if len(bad) > n_good:
        raise UserError(
            f"{source}: --skip-bad-rows would leave out {len(bad)} of {n_good + len(bad)} rows, more than it keeps: "
            f"{listed(bad)}"
        )


def _places(where: Sequence[str]) -> str:
    shown = ", ".join(where[:PLACES])
    return f"{shown} and {len(where) - PLACES:,} more" if len(where) > PLACES else shown
