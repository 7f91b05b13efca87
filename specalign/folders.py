"""Run folders: who writes into one now, and which of its files a run wrote.

A run lists its files in ``.specalign/files`` before it writes them, and ``--overwrite`` removes what is listed and
nothing else. ``.specalign/lock`` is held while a command writes; a crash releases it, ``holder.json`` says whose it is.
"""

from __future__ import annotations

import glob
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from specalign.errors import UserError

OURS = ".specalign"
FILES, LOCK, HOLDER = f"{OURS}/files", f"{OURS}/lock", f"{OURS}/holder.json"
DEPTH = 5
"""Folders between a run's own and the deepest file in it."""
RANDOM_LETTERS = 8
"""At the end of the name that a file has while it is written (``tempfile``'s)."""
LONGEST_NAME = 255
"""Bytes of one name in a path, on the file systems of today."""


def require_usable(folder: Path) -> None:
    """Raise UserError, or what the system says, where no run can be written into ``folder``, be it there or not."""
    long = next((name for name in folder.parts if len(os.fsencode(name)) > LONGEST_NAME), None)
    if long is not None:
        raise UserError(
            f"--output: the name {long[:40]!r}... is longer than {LONGEST_NAME} bytes; choose a shorter one"
        )
    place = folder
    while not _is_there(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{place} is not a folder; choose another --output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{place} is not a folder that you may write into; choose another --output")


def _is_there(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def hold(folder: Path, program: str) -> Iterator[None]:
    """Be the only command that writes into ``folder``, which is made where it is missing.

    Raises UserError, with who holds it, where another command does. Where no run begins, no trace is left.
    """
    require_usable(folder)
    if any((folder / name).is_symlink() for name in (OURS, FILES, LOCK, HOLDER)):
        raise UserError(
            f"{folder / OURS} holds links: nothing is written through them; choose another --output"
        )
    new = not folder.exists()
    (folder / OURS).mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{folder} is in use by {_holder(folder)}; wait for it, or choose another --output"
        ) from None
    try:
        _sign(folder, program)
        _sweep(folder)
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        if not (folder / FILES).exists() or is_empty(folder):
            _remove_traces(folder, new=new)
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a command writes into it now; one that crashed does not."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def is_empty(folder: Path) -> bool:
    """Whether there is nothing in it, or no such folder; what this module keeps there does not count."""
    return not folder.exists() or not any(path.name != OURS for path in folder.iterdir())


def begin(folder: Path) -> None:
    """Start the list of a new run's files. A folder that holds something already, unlisted, never gets one."""
    if is_empty(folder):
        (folder / OURS).mkdir(parents=True, exist_ok=True)
        (folder / FILES).write_text("", encoding="utf-8")


def add(path: Path) -> None:
    """List a file that is about to be written, where it lies in a run's folder.

    Raises UserError where such a file is there already and no run wrote it: it would be lost.
    """
    add_all([path])


def add_all(paths: Iterable[Path]) -> None:
    """The same for many."""
    new = [path for path in paths if _is_unlisted(path)]
    for path in new:
        require_ours(path)
    list_written(new)


def require_ours(path: Path) -> None:
    """Raise UserError where ``path`` is there already and no list says that a run wrote it."""
    if os.path.lexists(path) and (_run_of(path) is None or _is_unlisted(path)):
        raise UserError(f"{path} is there already, and no run wrote it: move it away first")


def list_written(paths: Iterable[Path]) -> None:
    """List files that others wrote for the run."""
    for path in filter(_is_unlisted, paths):
        folder = _run_of(path)
        if folder is not None:
            with open(folder / FILES, "a", encoding="utf-8") as file:
                file.write(path.relative_to(folder).as_posix() + "\n")


def clear(folder: Path, given: Mapping[str, str]) -> None:
    """Remove the files that runs listed, and the folders that this leaves empty. UserError as :func:`removable`."""
    for path in removable(folder, given):
        path.unlink(missing_ok=True)
        for parent in list(path.parents)[: len(path.relative_to(folder).parts) - 1]:
            with suppress(OSError):  # somebody else's file is in it
                parent.rmdir()
    if (folder / FILES).exists():
        (folder / FILES).write_text("", encoding="utf-8")


def removable(folder: Path, given: Mapping[str, str]) -> list[Path]:
    """The files that ``--overwrite`` would remove.

    Raises UserError where that is not safe: no run listed what is there, a link leads out of the folder, or one of
    the files belongs to an input of the command; ``given`` holds these, by the names of their options.
    """
    if is_empty(folder):
        return []
    if not folder.is_dir() or not (folder / FILES).is_file():
        raise UserError(
            f"{folder} holds files that no run of specalign listed as its own: nothing there is overwritten; "
            "choose another --output"
        )
    found = [folder / name for name in _listed(folder) if os.path.lexists(folder / name)]
    for path in found:
        if not (path.parent.resolve() / path.name).is_relative_to(folder.resolve()):
            raise UserError(
                f"{path.parent} leads out of {folder}: nothing is overwritten; choose another --output"
            )
    for option, value in given.items():
        _require_spared(option, value, found)
    return found


def advice(folder: Path, given: Mapping[str, str]) -> str:
    """What to do about a folder that holds another run: ``--overwrite`` is named only where it would work."""
    try:
        removable(folder, given)
    except UserError:
        return "choose another --output"
    return "choose another --output, or use --overwrite"


def _require_spared(option: str, value: str, files: list[Path]) -> None:
    """Data named ``kind:path`` are looked for without their kind too."""
    for name in {value, value.partition(":")[2]}:
        if name and os.path.lexists(name):
            inputs = {Path(name).absolute(), Path(name).resolve()}
            if any({path.resolve(), path.parent.resolve(), path.absolute()} & inputs for path in files):
                raise UserError(
                    f"{option} is {value}, which --overwrite would delete: choose another --output, or copy it first"
                )


def _listed(folder: Path) -> dict[str, None]:
    """Names that stay inside the folder; a list from elsewhere cannot name others."""
    names = (folder / FILES).read_text(encoding="utf-8").splitlines()
    parts = {name: PurePosixPath(name) for name in names if name}
    return {name: None for name, path in parts.items() if not path.is_absolute() and ".." not in path.parts}


def _is_unlisted(path: Path) -> bool:
    """Whether it lies in a run's folder and is missing in its list."""
    folder = _run_of(path)
    return folder is not None and path.relative_to(folder).as_posix() not in _listed(folder)


def _run_of(path: Path) -> Path | None:
    """The folder with a list of files that ``path`` lies in, at some depth."""
    above = list(path.parents)[:DEPTH]
    return next((each for each in above if (each / FILES).is_file() and not (each / FILES).is_symlink()), None)


def _sweep(folder: Path) -> None:
    """Remove what a killed command left of listed files that it was writing, beside their places."""
    for name in _listed(folder) if (folder / FILES).is_file() else ():
        path = folder / name
        for partial in path.parent.glob(f".{glob.escape(path.name)}.{'?' * RANDOM_LETTERS}"):
            if partial.is_file():
                partial.unlink()


def _sign(folder: Path, program: str) -> None:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = json.dumps({"program": program, "pid": os.getpid(), "host": socket.gethostname(), "since": since})
    (folder / HOLDER).write_text(text, encoding="utf-8")


def _holder(folder: Path) -> str:
    try:
        found = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"{found['program']} (pid {found['pid']} on {found['host']}, since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another command"


def _remove_traces(folder: Path, *, new: bool) -> None:
    """Leave a folder in which no run began as it was."""
    with suppress(OSError):
        for name in (FILES, LOCK):
            (folder / name).unlink(missing_ok=True)
        (folder / OURS).rmdir()
        if new:
            folder.rmdir()
