"""Rows handed over as Python objects: they become a JSONL file, and are read, cut into splits and told apart as one.

The file lies in the cache folder, under the hash of its content: a run over other rows is another run, and the recipe
that a run leaves can be given to the command line.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from specalign.config import cache_dir
from specalign.errors import UserError, unknown
from specalign.files import write_text

SPLITS = ("train", "validation", "test")
OF_PROMPTS = ("id", "input_ids", "reference_ids", "reference", "category")
"""Columns of a prompt."""
HASH = 16
"""Characters of the hash that the file is called."""

Rows = Iterable[Any] | Mapping[str, Iterable[Any]]
"""Texts, rows (mappings), conversations (lists of messages), prompts (:class:`specalign.data.Prompt`), or a data frame;
or one of these for each split."""


def source_of(data: str | Path | Rows) -> str:
    """The ``data.source`` of what was handed over: a name stays what it is, rows are written to the cache.

    Raises UserError for a row that is none of these, by its number, and for an unknown split.
    """
    if isinstance(data, str | Path):
        return str(data)
    if not isinstance(data, Mapping):
        text = _text(data)
        return str(_kept(f"{_hash(text)}.jsonl", text))
    if strange := [name for name in data if name not in SPLITS]:
        raise unknown("split of data", strange[0], SPLITS)
    texts = {name: _text(rows) for name, rows in data.items()}
    folder = _hash(json.dumps(texts))
    for name, text in texts.items():
        _kept(f"{folder}/{name}.jsonl", text)
    return str(cache_dir() / "rows" / folder)


def _kept(name: str, text: str) -> Path:
    path = cache_dir() / "rows" / name
    if not path.exists():
        write_text(path, text)
    return path


def _text(rows: Iterable[Any]) -> str:
    records = getattr(rows, "to_dict", None)
    if records is not None and hasattr(rows, "columns"):  # a data frame's own iterator gives its columns
        rows = records("records")
    lines = [_line(number, row) for number, row in enumerate(rows, start=1)]
    if not lines:
        raise UserError("the data handed over has no rows")
    return "".join(lines)


def _line(number: int, row: Any) -> str:
    try:
        return json.dumps(_row(row), default=_plain, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"row {number} of the data handed over: {error}") from None


def _row(row: Any) -> dict[str, Any]:
    if isinstance(row, str):
        return {"document": row}
    if isinstance(row, Mapping):
        return {str(key): None if _is_missing(value) else value for key, value in row.items()}
    if isinstance(row, list | tuple) and row and all(isinstance(message, Mapping) for message in row):
        return {"messages": [dict(message) for message in row]}
    if hasattr(row, "input_ids"):
        if getattr(row, "spans", ()):
            raise TypeError("a prompt with earlier answers to train on is handed over as its messages")
        return {name: getattr(row, name) for name in OF_PROMPTS}
    raise TypeError(
        f"a row is a text, a mapping, a list of messages or a prompt, not of type {type(row).__name__}"
    )


def _is_missing(value: object) -> bool:
    """A data frame's empty cell."""
    return isinstance(value, float) and math.isnan(value)


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy, mappings and tuples of any kind."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:HASH]
