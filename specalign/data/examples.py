"""What a data set is here: documents and, where there are any, references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from specalign.errors import UserError

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Example:
    """One row: a document, and the reference answer (empty where there is none)."""

    id: str
    document: str
    reference: str = ""
    category: str = ""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a tabular source; empty: the source's own ones."""

    document: str = ""
    reference: str = ""


SOURCES_OWN = Columns()
USUAL = Columns("document", "reference")
"""What a source's own columns are called where nothing else is known."""


def example_from_row(row: Mapping[str, object], columns: Columns, where: str, default_id: str) -> Example:
    """One example from one row; ``where`` names the row in errors. A reference may be missing or null."""
    if columns.document not in row:
        raise UserError(f"{where}: no column {columns.document!r} (columns: {', '.join(map(str, row))})")
    document, reference = row[columns.document], row.get(columns.reference)
    if not isinstance(document, str) or not document.strip():
        raise UserError(f"{where}: column {columns.document!r} is empty or not text")
    if reference is not None and not isinstance(reference, str):
        raise UserError(f"{where}: column {columns.reference!r} is not text")
    category = row.get("category")
    return Example(
        str(row.get("id", default_id)), document, reference or "", category if isinstance(category, str) else ""
    )
