"""Text to copy from: one file, or all text files of a folder and of those below it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from specalign.errors import UserError
from specalign.names import require_file


def corpus_files(source: str) -> list[Path]:
    """The files, in order of their paths; hidden ones are left out. Raises UserError where there are none."""
    path = Path(source)
    if not path.is_dir():
        require_file(path)
        return [path]
    found = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        raise UserError(f"{source} has no files to copy from")
    return found


def corpus_texts(source: str) -> Iterator[str]:
    """Their texts; what is no UTF-8 text is left out. Raises UserError where nothing is left."""
    n_texts = 0
    for file in corpus_files(source):
        text = _text(file)
        if text:
            n_texts += 1
            yield text
    if not n_texts:
        raise UserError(f"{source} has no UTF-8 text to copy from")


def corpus_sha256(source: str) -> str:
    """One hash of the names and contents of its files."""
    digest = hashlib.sha256()
    for file in corpus_files(source):
        digest.update(f"{file.name}\n".encode("utf-8", "surrogateescape"))
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _text(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return "" if "\0" in text else text
