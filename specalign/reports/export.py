"""A run for other tools: its records as a table, its pictures for print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from specalign.analysis.partial import result_so_far
from specalign.analysis.speeds import read_speeds
from specalign.files import atomic_path, write_text
from specalign.reports.gallery import figures
from specalign.reports.style import SETTINGS
from specalign.reports.svg import svg_file
from specalign.run_files import RECORDS_FILE, read_records
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


def write_svg(run: Path) -> Path:
    """Write every picture of the report as NAME.svg, letters as paths; returns the folder."""
    for name, figure, _ in figures(result_so_far(run).rows, read_speeds(run)):
        write_text(run / f"{name}.svg", svg_file(figure))
    return run


def write_pdf(run: Path) -> Path:
    """Write every picture of the report as NAME.pdf; returns the folder."""
    for name, figure, _ in figures(result_so_far(run).rows, read_speeds(run)):
        with atomic_path(run / f"{name}.pdf") as partial, mpl.rc_context(SETTINGS):
            figure.savefig(partial, format="pdf", metadata={"CreationDate": None})
    return run


WRITERS = {"parquet": write_parquet, "csv": write_csv, "svg": write_svg, "pdf": write_pdf}
"""Format -> what writes it into the run folder and returns where."""
