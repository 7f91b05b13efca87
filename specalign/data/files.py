"""Rows of local files: JSON lines, CSV, Parquet. A row that cannot be read is a RowError in its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specalign.data.examples import RowError
from specalign.errors import UserError

ENDINGS = (".jsonl", ".parquet", ".csv")
LONGEST_CELL = 2**31 - 1
"""Characters: Python's csv module stops at 131,072 by default, which an article may exceed."""

FileRow = Mapping[str, Any] | RowError
Rows = Iterator[tuple[str, FileRow]]
"""(Where it stands, the row)."""


def local_rows(path: Path) -> Rows:
    """The rows of a file by its ending. Raises UserError where the file as a whole cannot be read."""
    if not path.is_file():
        raise UserError(f"no such data file: {path}")
    readers = {".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}
    try:
        yield from readers[path.suffix](path)
    except UnicodeDecodeError as error:
        hint = f"convert it: iconv -f LATIN1 -t UTF-8 {path.name}"
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); {hint}") from None


def _json_lines(path: Path) -> Rows:
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            yield f"line {number}", _json_row(line)


def _json_row(line: str) -> FileRow:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return RowError(f"not JSON ({error.msg})")
    return row if isinstance(row, dict) else RowError("not a JSON object")


def _csv_rows(path: Path) -> Rows:
    csv.field_size_limit(LONGEST_CELL)
    with open(path, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            whole = None not in row
            yield f"line {reader.line_num}", row if whole else RowError("more cells than the header has")


def _parquet_rows(path: Path) -> Rows:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from None
    known = frame.astype(object).where(frame.notna(), None)
    for number, row in enumerate(known.to_dict("records"), start=1):
        yield f"row {number}", {str(key): value for key, value in row.items()}
