"""The one way to a terminal: what is printed there shows, and never acts (``specalign/text.py``)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from specalign.text import one_line, plain

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

WIDTH = 160
"""Columns where the output is no terminal."""


_KEPT: ContextVar[list[str] | None] = ContextVar("kept", default=None)


@contextmanager
def kept() -> Iterator[list[str]]:
    """Print nothing meanwhile: what is said goes into the list, and there are no bars."""
    lines: list[str] = []
    token = _KEPT.set(lines)
    try:
        yield lines
    finally:
        _KEPT.reset(token)


def is_kept() -> bool:
    """Whether nothing is printed now."""
    return _KEPT.get() is not None


def say(text: object, file: TextIO | None = None) -> None:
    """Print to standard output, or to ``file``."""
    lines = _KEPT.get()
    if lines is not None:
        lines.append(plain(str(text)))
    else:
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
    screen, lines = console(), _KEPT.get()
    if lines is None:
        screen.print(_Plain(renderable))
        return
    with screen.capture() as drawn:
        screen.print(_Plain(renderable))
    lines.append(drawn.get())


@dataclass(frozen=True)
class _Plain:
    """A renderable whose texts are made plain."""

    inner: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        from rich.segment import Segment

        for text, style, control in console.render(self.inner, options):
            yield Segment(text if control else plain(text), style, control)
