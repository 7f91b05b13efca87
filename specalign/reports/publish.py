"""A finished run in the form in which it is published: what a reader needs, small, and all of it checkable."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from specalign.analysis.partial import with_true_status
from specalign.analysis.recompute import untrue_figures
from specalign.errors import UserError
from specalign.files import compress
from specalign.reports.build import PAGE_FILE, REPORT_FILE, build_report
from specalign.results import BenchmarkResult
from specalign.run_files import PROBES_FILE, RECORDS_FILE, RESULT_FILE, read_result, read_run

KEPT = ("answer.md", "design.md", "held_out.json", "hypotheses.toml", "learning.png", "training.json")
"""Documents of a study that are published beside its run."""


def publish(run: Path, output: Path | None = None, *, most_bytes: int) -> Path:
    """Write result.json, compressed records and probes, report.md with its pictures and report.html into ``output``.

    ``output`` is by default reports/<date>_<suite>_<hardware>. Raises UserError where it exists, where the run is not
    complete or a figure does not follow from its raw files, and where all together is larger than ``most_bytes``.
    """
    files = read_run(run)
    if files.result.status != "complete":
        status = with_true_status(run, files.result).status
        raise UserError(f"{run} is {status}: only a complete run is published")
    if wrong := untrue_figures(files):
        raise UserError(f"{run}: {wrong[0]}")
    output = output or Path("reports") / published_name(files.result)
    if output.exists():
        raise UserError(f"{output} is there already")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as place:
        made = Path(place) / output.name
        made.mkdir()
        _fill(run, made)
        _require_small(made, most_bytes)
        made.rename(output)
    return output


def published_name(result: BenchmarkResult) -> str:
    """<date>_<suite>_<hardware> of a run."""
    hardware = result.provenance.get("hardware", {})
    machine = hardware.get("gpu") or f"cpu-{hardware.get('torch_threads')}core"
    words = str(result.provenance.get("created"))[:10], result.suite.replace("_", "-"), str(machine)
    return "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", word) for word in words)


def _fill(run: Path, output: Path) -> None:
    for name in (RESULT_FILE, *KEPT):
        if (run / name).is_file():
            shutil.copyfile(run / name, output / name)
    compress(run / RECORDS_FILE, output / f"{RECORDS_FILE}.gz")
    if read_result(run).probes_sha256:
        compress(run / PROBES_FILE, output / f"{PROBES_FILE}.gz")
    build_report(output)


def _require_small(folder: Path, most_bytes: int) -> None:
    sizes = sorted(((path.stat().st_size, path.name) for path in folder.iterdir()), reverse=True)
    total = sum(size for size, _ in sizes)
    if total > most_bytes:
        largest = ", ".join(f"{name} {size / 1e6:.2f}" for size, name in sizes[:3])
        raise UserError(
            f"the published form would take {total / 1e6:.2f} MB, more than {most_bytes / 1e6:g} (largest, in MB: "
            f"{largest}); measure fewer prompts or methods in one run, or raise --most-mb"
        )


FILES = (RESULT_FILE, f"{RECORDS_FILE}.gz", f"{PROBES_FILE}.gz", REPORT_FILE, PAGE_FILE, *KEPT)
"""What a published run consists of, besides the PNGs that its report.md shows."""
