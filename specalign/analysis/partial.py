"""What a run comes to that a crash ended before it could say so itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from specalign.analysis.summary import summarise
from specalign.errors import UserError
from specalign.files import stored
from specalign.folders import is_held
from specalign.records import GenerationRecord
from specalign.results import BenchmarkResult
from specalign.run_files import (
    PROBES_FILE,
    RECORDS_FILE,
    RunFiles,
    read_probes,
    read_records,
    read_result,
    read_run,
)


def result_so_far(run: Path) -> BenchmarkResult:
    """The result of a run folder, as the report, deploy and explain read it.

    A run that says "running" although no command holds its folder was ended by a crash: it is interrupted. Where
    there are no rows yet, those of the records that can be read.
    """
    result = with_true_status(run, read_result(run))
    if result.rows or result.status == "complete" or not stored(run / RECORDS_FILE).is_file():
        return result
    records = list(readable(run / RECORDS_FILE))
    statuses = [record.status for record in records]
    rows = sorted(
        summarise(records), key=lambda row: (row.temperature, row.kind != "target", row.method, row.gamma)
    )
    return replace(result, rows=rows, n_effective=statuses.count("ok"), n_failed=statuses.count("failed"))


def with_true_status(run: Path, result: BenchmarkResult) -> BenchmarkResult:
    """The result, "interrupted" where it says "running" and no command holds its folder."""
    ended = result.status == "running" and not is_held(run)
    return replace(result, status="interrupted") if ended else result


def run_so_far(run: Path) -> RunFiles:
    """All files of a run, an interrupted one's as far as they can be read. UserError where a complete one's changed."""
    result = result_so_far(run)
    if result.status == "complete":
        return read_run(run)
    records = list(readable(run / RECORDS_FILE)) if stored(run / RECORDS_FILE).is_file() else []
    return RunFiles(result, records, read_probes(run / PROBES_FILE))


def read_complete(run: Path) -> RunFiles:
    """All files of a complete run, for what compares runs or keeps them. Raises UserError for one that is not."""
    result = result_so_far(run)
    if result.status != "complete":
        made = result.n_effective + result.n_failed
        raise UserError(
            f"{run} is {result.status}: {made} of {result.n_requested} generations are there; the command that began "
            "it goes on with it"
        )
    return read_run(run)


def readable(path: Path) -> Iterator[GenerationRecord]:
    """Records up to the first damaged line."""
    records = read_records(path)
    while True:
        try:
            yield next(records)
        except (StopIteration, UserError):
            return
