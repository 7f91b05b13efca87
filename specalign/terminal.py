"""The one way to a terminal: what is printed there shows, and never acts (``specalign/text.py``)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from specalign.text import one_line, plain

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

WIDTH = 160
"""Columns where the output is no terminal."""


def say(text: object, file: TextIO | None = None) -> None:
    """Print to standard output, or to ``file``."""
    print(plain(str(text)), file=file or sys.stdout, flush=True)


def say_script(lines: Sequence[str]) -> None:
    """Print lines for a shell: a comment stays one line, whatever it quotes."""
    for line in lines:
        say(one_line(line) if line.startswith("#") else line)


def console() -> Console:
    """A console that takes brackets for brackets, wide enough where it is no terminal."""
    from rich.console import Console

    made = Console(markup=False, emoji=False, highlight=False)
    if not made.is_terminal:
        made.width = WIDTH
    return made


def show(renderable: RenderableType) -> None:
    """Print a table or the like."""
    console().print(_Plain(renderable))


@dataclass(frozen=True)
class _Plain:
    """A renderable whose texts are made plain."""

    inner: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        from rich.segment import Segment

        for text, style, control in console.render(self.inner, options):
            yield Segment(text if control else plain(text), style, control)
