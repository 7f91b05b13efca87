"""How far a long job is: a bar on a terminal, elsewhere a line a minute on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from specalign.terminal import console, is_kept, say
from specalign.text import one_line

THREAD = "specalign-progress"
EVERY_S = 60.0
"""Seconds between two lines where there is no terminal."""


@dataclass(frozen=True)
class Bar:
    """One bar."""

    progress: Progress
    task: TaskID

    def advance(self, amount: float = 1) -> None:
        """Move on by ``amount``."""
        self.progress.advance(self.task, amount)

    def move_to(self, amount: float) -> None:
        """Move to ``amount`` of the total."""
        self.progress.update(self.task, completed=amount)

    def say(self, line: str) -> None:
        """Print a line above the bar, to standard output where there is no terminal."""
        if self.progress.disable:
            say(line)
        else:
            self.progress.console.print(one_line(line))

    def line(self) -> str:
        """What is done, how far it is, and how long it took and will take."""
        task = self.progress.tasks[self.progress.task_ids.index(self.task)]
        share, elapsed_s = (task.percentage / 100, task.elapsed or 0.0)
        left = f", about {_minutes(elapsed_s * (1 - share) / share)} left" if share > 0 else ""
        return f"{task.description}: {share:.0%} after {_minutes(elapsed_s)}{left}"


@contextmanager
def progress_bar(what: str, total: float) -> Iterator[Bar]:
    """A bar on the terminal while the context lasts; without one, a line a minute, however long a step takes.

    Neither where nothing is to be printed (:func:`specalign.terminal.kept`).
    """
    screen = console()
    bars = screen.is_terminal and not is_kept()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, transient=True, disable=not bars) as progress:
        bar = Bar(progress, progress.add_task(one_line(what), total=total))
        if bars or is_kept() or os.environ.get("RANK", "0") != "0":  # one process of a launcher tells
            yield bar
        else:
            with _told(bar):
                yield bar


@contextmanager
def _told(bar: Bar) -> Iterator[None]:
    ended = Event()

    def tell() -> None:
        while not ended.wait(EVERY_S):
            say(bar.line(), file=sys.stderr)

    thread = Thread(target=tell, name=THREAD, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
