"""Errors that a user can act on, and the one place that turns them into exit codes."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable

from safetensors import SafetensorError

from specalign.text import plain

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
LONGEST_WORD = 80
"""Characters of a wrong name that an error repeats."""
LONGEST_LINE = 4000
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""What the system says of a disk that takes no more."""
UNUSABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EXDEV,
    errno.ENXIO,
    errno.ENODEV,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
)
"""What it says of a path that cannot be used: a user's mistake, where it names the path."""


class UserError(Exception):
    """A mistake that the user can mend: shown as one line, without a traceback, with exit code 2."""


def unknown(kind: str, name: object, choices: Iterable[str]) -> UserError:
    """The error for a name that is not in a table: names it, guesses what was meant, lists the choices."""
    known, word = sorted(choices), str(name)[:LONGEST_WORD]
    close = difflib.get_close_matches(word, known, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown {kind} {word!r}{guess} (choices: {', '.join(known)})")


def run_cli(program: str, main: Callable[[], None]) -> int:
    """Run a command and return its exit code: 0, 2 for a user's mistake, 130 for Ctrl-C.

    Anything else is a defect of ours and keeps its traceback.
    """
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        return _fail(program, str(error))
    except KeyboardInterrupt:
        print(f"{program}: interrupted; what was written so far is kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head` closed our output: not an error, but Python would report it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RecursionError as error:  # of a parser: no code of ours calls itself for each thing that it reads
        return _fail(program, f"something that was read is nested too deep ({error})")
    except OSError as error:
        if error.errno in UNWRITABLE:
            return _fail(program, f"cannot write {error.filename or 'the output'}: {error.strerror}")
        if error.errno in UNUSABLE and error.filename is not None:
            return _fail(program, f"cannot use {error.filename}: {error.strerror}")
        raise
    except SafetensorError as error:  # its errors of the system have no errno
        if not any(f"(os error {number})" in str(error) for number in (*UNWRITABLE, errno.EACCES)):
            raise
        return _fail(program, f"cannot write the weights: {error}")
    return 0


def _fail(program: str, message: str) -> int:
    line = plain(" ".join(message.split()))
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 4 :]}"
    print(f"{program}: error: {line}", file=sys.stderr)
    return EXIT_USER_ERROR
