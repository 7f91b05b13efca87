"""What a report is made of, before it is markdown or HTML. All text is plain: each renderer escapes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Paragraph:
    """Text behind a lead in bold."""

    text: str
    lead: str = ""
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """Cells of text; in HTML a click on a column's head sorts by it."""

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    folded: str = ""
    """What stands in the table's place until a reader opens it; empty: it is open."""


@dataclass(frozen=True)
class Picture:
    """A file beside the report, ``name``.png; in HTML an element of the page."""

    name: str
    caption: str


@dataclass(frozen=True)
class Code:
    """Commands, verbatim."""

    text: str


Block = Paragraph | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it."""

    title: str
    blocks: Sequence[Block]
    parts: Sequence[Section] = field(default_factory=tuple)


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    opening: Sequence[Block]
    sections: Sequence[Section]
