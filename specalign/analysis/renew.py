"""A run's result by today's definitions, from the raw files that it left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from specalign.analysis.load_rows import load_rows
from specalign.analysis.recompute import JUDGED
from specalign.analysis.summary import summarise
from specalign.analysis.verdict import trust_checks
from specalign.errors import UserError
from specalign.metrics import METRICS_VERSION
from specalign.results import BenchmarkResult
from specalign.run_files import RunFiles, read_run, write_result

OUTDATED = "the figures follow older definitions and decide nothing: specalign-bench recompute RUN renews them"


def renew(folder: Path) -> BenchmarkResult:
    """Write result.json anew by today's definitions; what took the models (greedy parity) is kept as it was judged.

    Raises UserError where the run is not complete, or its raw files are not the ones that it was made from.
    """
    run = read_run(folder)
    if run.result.status != "complete":
        raise UserError(
            f"{folder} is not complete: finish the run, which computes its figures by today's definitions"
        )
    result = renewed(run)
    write_result(folder, result)
    return result


def renewed(run: RunFiles) -> BenchmarkResult:
    """The same run with rows, load and checks computed from its records and probes."""
    again = {(row.method, row.temperature, row.gamma): row for row in summarise(run.records, None, run.probes)}
    rows = [
        replace(again[row.method, row.temperature, row.gamma], **{name: getattr(row, name) for name in JUDGED})
        for row in run.result.rows
    ]
    return replace(
        run.result,
        rows=rows,
        load=load_rows(run.probes),
        checks=trust_checks(run.result, run.records, rows, run.probes),
        metrics_version=METRICS_VERSION,
    )
