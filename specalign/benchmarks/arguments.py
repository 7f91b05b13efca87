"""Command lines: flags, and run folders before them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from specalign.config import parse_flags
from specalign.errors import UserError

PROGRAM = "specalign-bench"

C = TypeVar("C")


def flags(command: str, arguments: Sequence[str], default: C) -> C:
    """The flags of ``command`` over ``default``, whose class says in its docstring what the command does."""
    return parse_flags(
        type(default),
        arguments,
        default=default,
        program=f"{PROGRAM} {command}",
        description=type(default).__doc__ or "",
    )


def run_folders(
    command: str, arguments: Sequence[str], default: C, *, most: int | None = None
) -> tuple[list[Path], C]:
    """Leading words are run folders (at least one, at ``most`` so many), the rest are flags over ``default``."""
    names = list(takewhile(lambda word: not word.startswith("-"), arguments))
    config = flags(f"{command} RUN", arguments[len(names) :], default)
    if not names or (most is not None and len(names) > most):
        raise UserError(f"{command} takes {'one run folder' if most == 1 else 'run folders'}")
    for name in names:
        if not Path(name).is_dir():
            raise UserError(f"no such run folder: {name}")
    return [Path(name) for name in names], config
