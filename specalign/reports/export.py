"""A run for other tools and for papers: its records and its report's tables as files, its pictures for print."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from specalign import folders
from specalign.analysis.curves import curves_of_run
from specalign.analysis.partial import result_so_far
from specalign.analysis.parts import read_parts
from specalign.analysis.speeds import read_speeds
from specalign.curves import COMPARISON, NAME, Curve, curves_of, draw, frame, runs_below, save
from specalign.errors import UserError
from specalign.files import atomic_path, stored, write_text
from specalign.reports.content import Section, Table
from specalign.reports.gallery import figures
from specalign.reports.sections import document
from specalign.reports.style import SETTINGS
from specalign.reports.svg import svg_file
from specalign.run_files import RECORDS_FILE, RESULT_FILE, read_records
from specalign.text import one_line, plain

FORMULA = ("=", "+", "-", "@")
NUMBER = re.compile(r"[+-]?\d[\d.]*( ?%)?")
TABLES = "tables"
"""Folder of the report's tables, in the run's."""
IN_LATEX = str.maketrans(
    {
        "α": r"$\alpha$",
        "γ": r"$\gamma$",
        "τ": r"$\tau$",
        "Δ": r"$\Delta$",
        "≤": r"$\le$",
        "≥": r"$\ge$",
        "×": r"$\times$",
        "±": r"$\pm$",
        "·": r"$\cdot$",
        "–": "--",
    }
)
"""Characters of reports that pdflatex does not print without a package."""


@dataclass(frozen=True)
class NamedTable:
    """A table of the report."""

    name: str
    """Of its file."""
    title: str
    """The headings that it stands under."""
    frame: pd.DataFrame
    """Its cells, as text."""


def records_frame(run: Path) -> pd.DataFrame:
    """A row a generation; the columns of its steps are lists, named ``steps.n_drafted`` and so on."""
    return pd.json_normalize([asdict(record) for record in read_records(run / RECORDS_FILE)])


def write_parquet(run: Path) -> Path:
    """Write records.parquet."""
    with atomic_path(run / "records.parquet") as partial:
        records_frame(run).to_parquet(partial, index=False)
    return run / "records.parquet"


def write_csv(run: Path) -> Path:
    """Write records.csv, lists as JSON text, each table of the report as tables/NAME.csv, and curves.csv.

    A spreadsheet takes a cell that begins with = + - @ for a formula: a text that does, and is no number, is
    preceded by a quote.
    """
    frame = records_frame(run).map(_cell)
    with atomic_path(run / "records.csv") as partial:
        frame.to_csv(partial, index=False)
    for table in report_tables(run):
        with atomic_path(run / TABLES / f"{table.name}.csv") as partial:
            table.frame.map(_cell).to_csv(partial, index=False)
    write_curves(run, _curves(run), "csv")
    return run / "records.csv"


def write_latex(run: Path) -> Path:
    """Write each table of the report as tables/NAME.tex, for papers that use booktabs; returns their folder."""
    for table in report_tables(run):
        write_text(run / TABLES / f"{table.name}.tex", latex(table))
    return run / TABLES


def latex(table: NamedTable) -> str:
    """A tabular environment with rules of booktabs under a line that says what it is; captions are the paper's own."""
    columns = "l" + "r" * (table.frame.shape[1] - 1)
    cells = table.frame.to_latex(index=False, escape=True, column_format=columns)
    return f"% {table.title}\n{cells.translate(IN_LATEX)}"


def report_tables(run: Path) -> list[NamedTable]:
    """Every table of the report in its order, called after the headings above it."""
    result = result_so_far(run)
    report = document(result, read_speeds(run), (), read_parts(run, result))
    found: list[NamedTable] = []
    seen: Counter[str] = Counter()
    for title, table in (each for section in report.sections for each in _tables(section, section.title)):
        name = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.")
        seen[name] += 1
        name = name if seen[name] == 1 else f"{name}-{seen[name]}"
        lines = [[" ".join(cell.split()) for cell in line] for line in table.lines]
        found.append(NamedTable(name, one_line(title), pd.DataFrame(lines, columns=list(table.header))))
    return found


def _tables(section: Section, title: str) -> Iterator[tuple[str, Table]]:
    for block in section.blocks:
        if isinstance(block, Table):
            yield title, block
    for part in section.parts:
        yield from _tables(part, f"{title}, {part.title}")


def _cell(value: object) -> object:
    if isinstance(value, list):
        return json.dumps(value)
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) and not NUMBER.fullmatch(text) else text


def write_svg(run: Path) -> Path:
    """Write every picture of the report as NAME.svg, letters as paths; returns the folder."""
    for name, figure, _ in figures(result_so_far(run).rows, read_speeds(run)):
        write_text(run / f"{name}.svg", svg_file(figure))
    write_curves(run, _curves(run), "svg")
    return run


def write_pdf(run: Path) -> Path:
    """Write every picture of the report as NAME.pdf; returns the folder."""
    for name, figure, _ in figures(result_so_far(run).rows, read_speeds(run)):
        with atomic_path(run / f"{name}.pdf") as partial, mpl.rc_context(SETTINGS):
            figure.savefig(partial, format="pdf", metadata={"CreationDate": None})
    write_curves(run, _curves(run), "pdf")
    return run


def _curves(run: Path) -> list[Curve]:
    return curves_of_run(run, result_so_far(run)).curves


def write_curves(folder: Path, curves: Sequence[Curve], ending: str) -> Path | None:
    """Write the learning curves as curves.ENDING; nothing where there are none."""
    if not curves:
        return None
    path = folder / f"{NAME}.{ending}"
    if ending != "csv":
        return save(draw(curves), path)
    with atomic_path(path) as partial:
        frame(curves).map(_cell).to_csv(partial, index=False)
    return path


OF_CURVES = ("csv", "svg", "pdf")
WRITERS = {"parquet": write_parquet, "csv": write_csv, "latex": write_latex, "svg": write_svg, "pdf": write_pdf}
"""Format -> what writes it into the run folder and returns where."""


def export(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Write a run in these formats, or the learning curves of a folder of training runs; returns what to say.

    Raises UserError where it is neither, and for a format that training runs have not.
    """
    if stored(folder / RESULT_FILE).is_file() or not (runs := runs_below(folder)):
        missing = curves_of_run(folder, result_so_far(folder)).missing
        written = [str(WRITERS[name](folder)) for name in wanted]
        left_out = f"learning curves are left out, their runs are not here: {', '.join(missing)}"
        return [*written, left_out] if missing and set(wanted) & set(OF_CURVES) else written
    if others := [name for name in wanted if name not in OF_CURVES]:
        raise UserError(
            f"{folder} holds training runs, whose learning curves are written by --{', --'.join(OF_CURVES)}, "
            f"not --{others[0]}"
        )
    beside = folder / COMPARISON
    folders.begin(beside)
    curves = curves_of(runs)
    return [str(write_curves(beside, curves, ending)) for ending in wanted]
