"""From the files of a run to its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specalign import folders
from specalign.analysis.partial import result_so_far
from specalign.analysis.parts import read_parts
from specalign.analysis.speeds import read_speeds
from specalign.errors import UserError
from specalign.files import write_text
from specalign.reports.content import Picture
from specalign.reports.gallery import figures
from specalign.reports.markdown import markdown
from specalign.reports.page import html_page
from specalign.reports.rows import at, temperatures_of
from specalign.reports.sections import document
from specalign.reports.style import save_png
from specalign.reports.svg import inline_svg
from specalign.reports.tables import comparison, escape
from specalign.results import BenchmarkResult
from specalign.run_files import require_untouched

REPORT_FILE = "report.md"
PAGE_FILE = "report.html"


def build_report(run: Path, result: BenchmarkResult | None = None) -> Path:
    """Write report.md, report.html and the plots of a run folder; the same files give the same bytes.

    ``result`` stands in for result.json where a crash left that without rows. Raises UserError where records.jsonl
    is not the one that result.json was computed from.
    """
    result = result or result_so_far(run)
    require_untouched(run, result)
    speeds = read_speeds(run)
    pictures, drawings = [], {}
    for name, figure, caption in figures(result.rows, speeds):
        drawings[name] = inline_svg(figure, name)
        save_png(figure, run / f"{name}.png")
        pictures.append(Picture(name, caption))
    report = document(result, speeds, pictures, read_parts(run, result))
    write_text(run / PAGE_FILE, html_page(report, drawings))
    write_text(run / REPORT_FILE, markdown(report))
    return run / REPORT_FILE


def compare_runs(runs: Sequence[Path], output: Path, *, force: bool = False) -> Path:
    """Write comparison.md: the rows of several runs, a table a temperature.

    Raises UserError where they are not comparable (metric definitions, data, prompts, dtype or lengths differ), unless
    ``force`` is set: the differences are then named in the comparison.
    """
    results = [result_so_far(run) for run in runs]
    differences = _differences(results)
    if differences and not force:
        raise UserError(
            f"these runs are not comparable: {'; '.join(differences)} (--force compares them all the same)"
        )
    lines = ["# Comparison of runs", ""]
    lines += [f"> Not like for like: {escape(difference)}" for difference in differences] + [""] * bool(
        differences
    )
    lines += [
        f"- {escape(run.name)}: {escape(_machine(result))}" for run, result in zip(runs, results, strict=True)
    ]
    for temperature in temperatures_of(row for result in results for row in result.rows):
        lines += ["", f"## Temperature {temperature:g}"]
        for run, result in zip(runs, results, strict=True):
            lines += ["", f"### {escape(run.name)}", "", *comparison(at(result.rows, temperature))]
    folders.begin(output)
    folders.require_ours(output / "comparison.md")
    write_text(output / "comparison.md", "\n".join(lines) + "\n")
    return output / "comparison.md"


def _differences(results: Sequence[BenchmarkResult]) -> list[str]:
    """What keeps the runs from being compared, in words."""
    first = results[0]
    asked = [result.config.get("data", {}) for result in results]
    known = set.intersection(*map(set, asked))  # an older run does not name every field
    found = []
    for name, get in {
        "metric definitions": lambda result: result.metrics_version,
        "dtype": lambda result: result.provenance.get("dtype"),
        "data": lambda result: {
            field: value for field, value in result.config.get("data", {}).items() if field in known
        },
        "prompts (SHA-256)": lambda result: result.provenance.get("prompts_sha256"),
        "decoding.max_new_tokens": lambda result: result.config.get("decoding", {}).get("max_new_tokens"),
    }.items():
        values = [get(result) for result in results]
        if any(value != get(first) for value in values):
            found.append(f"{name}: {' against '.join(str(value) for value in values)}")
    return found


def _machine(result: BenchmarkResult) -> str:
    hardware = result.provenance.get("hardware", {})
    made = result.n_effective + result.n_failed
    part = (
        "" if result.status == "complete" else f"; {result.status}: {made} of {result.n_requested} generations"
    )
    return (
        f"{result.target.source} on {hardware.get('gpu') or hardware.get('cpu')}, "
        f"{result.provenance.get('created')}{part}"
    )
