"""Reading and writing files so that nothing is lost: a write is whole or has not happened."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from specalign import folders
from specalign.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: after a crash there is the old content or the new, never a part."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Write JSON atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines atomically."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file path beside ``path``; on success it is flushed to disk and takes its place.

    In a run's folder ``path`` is listed as a file of the run first.
    """
    folders.add(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """The text of a file. Raises UserError where there is none, or where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no such file: {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}"
        ) from None


def byte_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, without their newlines; where only ``path``.gz is there, of that.

    Raises UserError where there is neither, or it ends within a line.
    """
    with open_stored(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                raise UserError(f"{path}, line {number}: cut off; the run was interrupted while writing it")
            yield line[:-1]


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file that is still written to, without a last one that was cut off; none without a file."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error})") from None


def stored(path: Path) -> Path:
    """The file as it lies there: ``path``, or ``path``.gz where only that exists."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


@contextmanager
def open_stored(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path``, or ``path``.gz where only that exists, to read its content.

    Raises UserError where there is neither, or the compressed one is damaged.
    """
    kept = stored(path)
    try:
        with gzip.open(kept) if kept != path else open(kept, "rb") as file:
            yield file  # type: ignore[misc]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no such file: {path}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{kept} is damaged: {error}") from None


def compress(path: Path, packed: Path) -> None:
    """Write a file's content into ``packed``, by gzip without name and time: the same bytes for the same content."""
    with (
        open_stored(path) as content,
        atomic_path(packed) as partial,
        open(partial, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=9, mtime=0) as out,
    ):
        shutil.copyfileobj(content, out)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal: of ``path``.gz, where only that exists, of what is in it."""
    with open_stored(path) as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
