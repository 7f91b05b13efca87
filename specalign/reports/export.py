"""records.jsonl as a table for other tools."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from specalign.files import atomic_path
from specalign.results import RECORDS_FILE, read_records
from specalign.text import plain

FORMULA = ("=", "+", "-", "@")


def records_frame(run: Path) -> pd.DataFrame:
    """A row a generation; the columns of its steps are lists, named ``steps.n_drafted`` and so on."""
    return pd.json_normalize([asdict(record) for record in read_records(run / RECORDS_FILE)])


def write_parquet(run: Path) -> Path:
    """Write records.parquet."""
    with atomic_path(run / "records.parquet") as partial:
        records_frame(run).to_parquet(partial, index=False)
    return run / "records.parquet"


def write_csv(run: Path) -> Path:
    """Write records.csv; lists are JSON text.

    A spreadsheet takes a cell that begins with = + - @ for a formula: a text that does is preceded by a quote.
    """
    frame = records_frame(run).map(_cell)
    with atomic_path(run / "records.csv") as partial:
        frame.to_csv(partial, index=False)
    return run / "records.csv"


def _cell(value: object) -> object:
    if isinstance(value, list):
        return json.dumps(value)
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text
