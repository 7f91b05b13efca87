"""Rows of local files by their ending. A row that cannot be read is a RowError in its place.

``.jsonl``: a JSON object a line · ``.json``: a list of objects, or an object with one list of them · ``.csv``: with
a header, commas and double quotes · ``.txt``: a document a line · ``.parquet`` · the text ones also as ``.gz``.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from specalign.data.examples import USUAL, RowError
from specalign.errors import UserError
from specalign.names import ENDINGS, require_file

LONGEST_CELL = 2**31 - 1
"""Characters: Python's csv module stops at 131,072 by default, which an article may exceed."""
HEAD = 4096
"""Bytes by which a file of another kind is recognised."""
MAGIC = {
    b"\x1f\x8b": "compressed by gzip: let its name end in .gz",
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet: unpack it, or save it as CSV",
    b"BZh": "compressed by bzip2: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    b"\xfd7zXZ": "compressed by xz: unpack it",
}
WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\r\f\v\x1b")
"""Bytes that text does not have."""

FileRow = Mapping[str, Any] | RowError
Rows = Iterator[tuple[str, FileRow]]
"""(Where it stands, the row)."""


def local_rows(path: Path) -> Rows:
    """The rows of a file by its ending. Raises UserError where the file as a whole cannot be read."""
    require_file(path)
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise UserError(f"{path}: the name of a data file ends in one of: {', '.join(ENDINGS)}")
    if ending == ".parquet":
        return _parquet_rows(path)
    readers = {".jsonl": _json_lines, ".json": _json_rows, ".csv": _csv_rows, ".txt": _text_rows}
    return _text_file_rows(path, readers[ending.removesuffix(".gz")])


def _text_file_rows(path: Path, reader: Any) -> Rows:
    """The rows that ``reader`` finds in a text, with words for what is no text."""
    zipped = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            _require_text(path, file.read(HEAD))
        with _opened(path, zipped) as text:
            yield from reader(path, text)
    except UnicodeDecodeError:
        raise UserError(_undecodable(path, zipped)) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}") from None
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _opened(path: Path, zipped: bool) -> IO[str]:
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _require_text(path: Path, head: bytes) -> None:
    found = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if found:
        raise UserError(f"{path} is {found}")
    wide = next((name for mark, name in WIDE.items() if head.startswith(mark)), None)
    if wide is None and head[1:64:2].count(0) > 16:
        wide = "UTF-16LE"
    if wide:
        raise UserError(f"{path} is {wide} text; convert it: iconv -f {wide} -t UTF-8")
    if CONTROLS.intersection(head):
        raise UserError(f"{path} is not text: it has control characters")


def _undecodable(path: Path, zipped: bool) -> str:
    """Where the first line is that is no UTF-8."""
    with gzip.open(path) if zipped else open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                hint = "if it is in an older Western encoding, convert it: iconv -f LATIN1 -t UTF-8"
                return (
                    f"{path} is not UTF-8 text (line {number}, byte {error.start + 1}: {error.reason}); {hint}"
                )
    return f"{path} is not UTF-8 text"


def _json_lines(_path: Path, lines: IO[str]) -> Rows:
    for number, line in enumerate(lines, start=1):
        yield f"line {number}", _json_row(line)


def _json_row(line: str) -> FileRow:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return RowError(f"not JSON ({error.msg})")
    except RecursionError:
        return RowError("not read: JSON nested too deep")
    except ValueError as error:  # a number of thousands of digits
        return RowError(f"not read: {error}")
    return row if isinstance(row, dict) else RowError("not a JSON object")


def _json_rows(path: Path, file: IO[str]) -> Rows:
    text = file.read()
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # an object a line
            return _json_lines(path, iter(text.splitlines()))  # type: ignore[arg-type]
        raise UserError(f"{path} is not JSON: line {error.lineno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} is not read as JSON: {error}") from None
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        found = lists[0] if len(lists) == 1 else [found]
    if not isinstance(found, list):
        raise UserError(f"{path} holds no list of JSON objects")
    return (
        (f"row {number}", row if isinstance(row, dict) else RowError("not a JSON object"))
        for number, row in enumerate(found, start=1)
    )


def _text_rows(_path: Path, lines: IO[str]) -> Rows:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"line {number}", {USUAL.document: line.rstrip("\r\n")}


def _csv_rows(path: Path, lines: IO[str]) -> Rows:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.DictReader(lines, strict=True)
    begin = 1
    try:
        _require_header(path, reader.fieldnames or ())
        begin = reader.line_num + 1
        for row in reader:
            where, begin = f"line {begin}", reader.line_num + 1
            yield where, row if None not in row else RowError("more cells than the header has")
    except csv.Error as error:
        raise UserError(
            f"{path}: the row that begins in line {begin} is not CSV ({error}): is a quote opened there and not "
            'closed? a quote inside of a quoted cell is doubled: ""'
        ) from None


def _require_header(path: Path, names: Any) -> None:
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise UserError(f"{path} has the column {twice[0]!r} twice")
    other = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
    if other:
        raise UserError(
            f"{path}: its header is one cell, {names[0][:80]!r}: are its cells separated by {other!r}? "
            "save it with commas"
        )


def _parquet_rows(path: Path) -> Rows:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from None
    known = frame.astype(object).where(frame.notna(), None)
    for number, row in enumerate(known.to_dict("records"), start=1):
        yield f"row {number}", {str(key): value for key, value in row.items()}
