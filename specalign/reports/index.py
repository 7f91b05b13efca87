"""reports/README.md: an index of the published runs, with thumbnails, made from their result files."""

from __future__ import annotations

import re
from pathlib import Path

from specalign.analysis.decision import Decision, decide
from specalign.errors import UserError
from specalign.files import write_text
from specalign.reports.recommendation import processor
from specalign.reports.rows import full_name, temperatures_of
from specalign.reports.tables import escape, interval, markdown_table
from specalign.results import BenchmarkResult
from specalign.run_files import RESULT_FILE, read_result

INDEX_FILE = "README.md"
PUBLISHED = re.compile(r"\d{4}-\d{2}-\d{2}_\w[\w.-]*")
"""Folder names of published runs: <date>_<suite>_<hardware>."""
INTRODUCTION = """\
# Published runs

Each folder is one run, named `<date>_<suite>_<hardware>`: `report.md` and `report.html` (the same, one file that opens
from disk; start there), `result.json` with every figure, and `records.jsonl.gz` with every step of every generation.
Your own runs land here too; git ignores them. `specalign-bench publish RUN` makes such a folder,
`specalign-bench index` this page.
"""
COMMANDS = """\
`specalign-bench report FOLDER` rebuilds a report from its files, `specalign-bench explain FOLDER` says why each drafter
is as fast as it is, and `specalign-bench compare FOLDER FOLDER` puts runs side by side."""


def index_text(folder: Path) -> str:
    """The index of the published runs in a folder, the newest first."""
    runs = [
        path for path in folder.iterdir() if PUBLISHED.fullmatch(path.name) and (path / RESULT_FILE).is_file()
    ]
    lines = [_line(run) for run in sorted(runs, reverse=True)]
    header = [
        "run",
        "decision, with the speed-up over the plain target, all rows of the run tested together",
        "machine",
        "",
    ]
    table = markdown_table(header, [])
    return "\n".join([INTRODUCTION, *table, *lines, "", COMMANDS]) + "\n"


def write_index(folder: Path) -> Path:
    """Write the index into the folder. Raises UserError where another README stands there."""
    path = folder / INDEX_FILE
    title = INTRODUCTION.splitlines()[0]
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(title):
        raise UserError(f"{path} is no index of runs: it is not overwritten; move it away first")
    write_text(folder / INDEX_FILE, index_text(folder))
    return folder / INDEX_FILE


def _line(run: Path) -> str:
    result = read_result(run)
    picture = (
        f'<img src="{run.name}/speedup.png" width="240" alt="speed-up">'
        if (run / "speedup.png").is_file()
        else ""
    )
    cells = [
        f"[{run.name}]({run.name}/report.md)",
        escape(_fastest(result)),
        escape(processor(result)),
        picture,
    ]
    return f"| {' | '.join(cells)} |"


def _fastest(result: BenchmarkResult) -> str:
    found = [
        f"temperature {temperature:g}: {_told(decision)}"
        for temperature in temperatures_of(result.rows)
        if (decision := decide(result.rows, temperature))
    ]
    return "; ".join(found) or "no speed-up could be computed"


def _told(decision: Decision) -> str:
    measured = interval(decision.best.speedup_joint or decision.best.speedup, unit="x")
    if decision.use:
        return f"use {full_name(decision.best)}, {measured}"
    return f"keep the plain target (best: {full_name(decision.best)}, {measured})"
