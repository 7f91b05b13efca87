"""Errors that a user can act on, and the one place that turns them into exit codes."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable

from safetensors import SafetensorError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


class UserError(Exception):
    """A mistake that the user can mend: shown as one line, without a traceback, with exit code 2."""


def unknown(kind: str, name: object, choices: Iterable[str]) -> UserError:
    """The error for a name that is not in a table: names it, guesses what was meant, lists the choices."""
    known = sorted(choices)
    close = difflib.get_close_matches(str(name), known, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown {kind} {str(name)!r}{guess} (choices: {', '.join(known)})")


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
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        return _fail(program, f"cannot write {error.filename or 'the output'}: {error.strerror}")
    except SafetensorError as error:  # its errors of the system have no errno
        if not any(f"(os error {number})" in str(error) for number in UNWRITABLE):
            raise
        return _fail(program, f"cannot write the weights: {error}")
    return 0


def _fail(program: str, message: str) -> int:
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USER_ERROR
