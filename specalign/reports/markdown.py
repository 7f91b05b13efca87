"""report.md: a document in GitHub's markdown."""

from __future__ import annotations

import html
import re

from specalign.reports.content import Block, Code, Document, Paragraph, Picture, Section, Table
from specalign.reports.tables import escape, markdown_table
from specalign.text import plain


def markdown(document: Document) -> str:
    """The document, whatever its strings hold: they stay text."""
    opening = [line for block in document.opening for line in _opening(block)]
    lines = [f"# {escape(document.title)}", "", *opening, ""]
    for section in document.sections:
        lines += _section(section, "##")
    return plain("\n".join(lines).rstrip("\n") + "\n")


def _opening(block: Block) -> list[str]:
    """List items and quotes, a line each: the answer must stand in the first ten lines."""
    if not isinstance(block, Paragraph):
        return _block(block)
    return [f"> {_text(block)}", ""] if block.warning else [f"- {_text(block)}"]


def _section(section: Section, mark: str) -> list[str]:
    lines = [f"{mark} {escape(section.title)}", ""]
    for block in section.blocks:
        lines += [*_block(block), ""]
    for part in section.parts:
        lines += _section(part, f"{mark}#")
    return lines


def _block(block: Block) -> list[str]:
    match block:
        case Paragraph():
            return [_text(block)]
        case Table():
            table = markdown_table(block.header, block.lines)
            summary = f"<summary>{html.escape(block.folded, quote=False)}</summary>"
            return ["<details>", summary, "", *table, "", "</details>"] if block.folded else table
        case Picture():
            return [f"![{escape(block.caption)}]({block.name}.png)", "", f"*{escape(block.caption)}*"]
        case Code():
            return _fenced(block.text)


def _text(block: Paragraph) -> str:
    return f"**{escape(block.lead)}** {escape(block.text)}" if block.lead else escape(block.text)


def _fenced(text: str) -> list[str]:
    """A fence longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [fence, text, fence]
