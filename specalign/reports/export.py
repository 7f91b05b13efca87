"""records.jsonl as a table for other tools."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from specalign.files import atomic_path
from specalign.results import RECORDS_FILE, read_records


def records_frame(run: Path) -> pd.DataFrame:
    """A row a generation; the columns of its steps are lists, named ``steps.n_drafted`` and so on."""
    return pd.json_normalize([asdict(record) for record in read_records(run / RECORDS_FILE)])


def write_parquet(run: Path) -> Path:
    """Write records.parquet."""
    with atomic_path(run / "records.parquet") as partial:
        records_frame(run).to_parquet(partial, index=False)
    return run / "records.parquet"


def write_csv(run: Path) -> Path:
    """Write records.csv; lists are JSON text."""
    frame = records_frame(run).map(lambda cell: json.dumps(cell) if isinstance(cell, list) else cell)
    with atomic_path(run / "records.csv") as partial:
        frame.to_csv(partial, index=False)
    return run / "records.csv"
