"""What a data set is here: documents and, where there are any, references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "validation", "test"]


class RowError(Exception):
    """What is wrong with one row of a data set; where it stands is the reader's to say."""


@dataclass(frozen=True)
class Example:
    """One row: a document, and the reference answer (empty where there is none)."""

    id: str
    document: str
    reference: str = ""
    category: str = ""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a tabular source, ``outer.inner`` for nested ones; empty: the source's own."""

    document: str = ""
    reference: str = ""


SOURCES_OWN = Columns()
USUAL = Columns("document", "reference")
"""What a source's own columns are called where nothing else is known."""


def example_from_row(row: Mapping[str, object], columns: Columns, default_id: str) -> Example:
    """One example from one row; raises RowError. A reference may be missing or null."""
    document = _cell(row, columns.document)
    if document is None and not _has(row, columns.document):
        raise RowError(f"no column {columns.document!r} (columns: {', '.join(map(str, row))})")
    if not isinstance(document, str) or not document.strip():
        raise RowError(f"column {columns.document!r} is empty or not text")
    reference = _cell(row, columns.reference)
    if reference is not None and not isinstance(reference, str):
        raise RowError(f"column {columns.reference!r} is not text")
    category = row.get("category")
    return Example(
        str(row.get("id", default_id)), document, reference or "", category if isinstance(category, str) else ""
    )


def _cell(row: Mapping[str, object], column: str) -> object:
    """The value of a column, or of a field of one (``translation.en``); None where there is none."""
    if column in row:
        return row[column]
    outer, _, inner = column.partition(".")
    value = row.get(outer)
    return value.get(inner) if inner and isinstance(value, Mapping) else None


def _has(row: Mapping[str, object], column: str) -> bool:
    return column in row or _cell(row, column) is not None
