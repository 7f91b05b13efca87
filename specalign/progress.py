"""Progress bars with an estimate of the time left; silent where the output is not a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
            print(line, flush=True)
        else:
            self.progress.console.print(line, markup=False, highlight=False)


@contextmanager
def progress_bar(what: str, total: float) -> Iterator[Bar]:
    """A bar on the terminal while the context lasts."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(what, total=total))
