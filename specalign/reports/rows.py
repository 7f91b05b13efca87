"""Picking and naming the rows of a result."""

from __future__ import annotations

from collections.abc import Iterable

from specalign.results import SummaryRow


def temperatures_of(rows: Iterable[SummaryRow]) -> list[float]:
    """Ascending, each once."""
    return sorted({row.temperature for row in rows})


def at(rows: Iterable[SummaryRow], temperature: float) -> list[SummaryRow]:
    """The rows of one temperature."""
    return [row for row in rows if row.temperature == temperature]


def full_name(row: SummaryRow) -> str:
    """Method and draft length, as sentences have them."""
    return f"{row.method} with γ {'≤' if row.adaptive else '='} {row.gamma}"


def draft_length(row: SummaryRow) -> str:
    """γ, the most where it is adaptive."""
    return f"≤ {row.gamma}" if row.adaptive else str(row.gamma)
