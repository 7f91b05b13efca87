"""What a data set is here: documents and, where there are any, references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar

Split = Literal["train", "validation", "test", "all"]
"""A part of a data set, or all of it."""


class Named(Protocol):
    """A dataclass with an id: a row, or the prompt of one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str:
        """What tells it from others."""


T = TypeVar("T", bound=Named)


class RowError(Exception):
    """What is wrong with one row of a data set; where it stands is the reader's to say."""


@dataclass(frozen=True)
class Example:
    """One row: a document, and the reference answer (empty where there is none)."""

    id: str
    document: str
    reference: str = ""
    category: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    """Of a conversation, with ``role`` and ``content`` as chat templates want them; else empty."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Definitions of the tools that it may call."""
    input_ids: tuple[int, ...] = ()
    """Of a row that is token ids already (:mod:`specalign.data.tokenised`); else empty."""
    reference_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a tabular source, ``outer.inner`` for nested ones; empty: the source's own."""

    document: str = ""
    reference: str = ""
    messages: str = ""
    """Of conversations; empty: recognised where there is one and no document."""


SOURCES_OWN = Columns()
USUAL = Columns("document", "reference")
"""What a source's own columns are called where nothing else is known."""


def example_from_row(row: Mapping[str, object], columns: Columns, default_id: str) -> Example:
    """One example from one row; raises RowError. A reference may be missing or null, so may an id."""
    document = _cell(row, columns.document)
    if document is None and not _has(row, columns.document):
        raise RowError(
            f"no column {columns.document!r} (columns: {', '.join(map(str, row))}); name the document's column "
            "with --data.document"
        )
    if not isinstance(document, str) or not document.strip():
        raise RowError(f"column {columns.document!r} is empty or not text")
    reference = _cell(row, columns.reference)
    if reference is not None and not isinstance(reference, str):
        raise RowError(f"column {columns.reference!r} is not text")
    category, id_ = row.get("category"), row.get("id")
    made = Example(
        default_id if id_ is None else str(id_),
        document,
        reference or "",
        category if isinstance(category, str) else "",
    )
    require_characters(
        {
            columns.document: made.document,
            columns.reference: made.reference,
            "category": made.category,
            "id": made.id,
        }
    )
    return made


def with_distinct_ids(examples: Iterable[T]) -> list[T]:
    """The same rows; an id that an earlier row has gets a number behind it. Rows are told apart by it alone."""
    found: dict[str, T] = {}
    repeated: Counter[str] = Counter()
    for example in examples:
        id_ = example.id
        while id_ in found:
            repeated[example.id] += 1
            id_ = f"{example.id}#{repeated[example.id] + 1}"
        found[id_] = example if id_ == example.id else replace(example, id=id_)
    return list(found.values())


def lone_surrogate(text: str) -> str | None:
    """The first half of a character that stands alone, which no tokenizer reads: ``\\ud83d``; None without any."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None


def require_characters(texts: Mapping[str, str]) -> None:
    """Raise RowError for a text with half a character, by its column."""
    for name, text in texts.items():
        if half := lone_surrogate(text):
            raise RowError(f"column {name!r} has half a character (a lone surrogate, {half})")


def _cell(row: Mapping[str, object], column: str) -> object:
    """The value of a column, or of a field of one (``translation.en``); None where there is none."""
    if column in row:
        return row[column]
    outer, _, inner = column.partition(".")
    value = row.get(outer)
    return value.get(inner) if inner and isinstance(value, Mapping) else None


def _has(row: Mapping[str, object], column: str) -> bool:
    return column in row or _cell(row, column) is not None
