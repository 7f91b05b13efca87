"""What a run comes to that a crash ended before it could say so itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from specalign.analysis.summary import summarise
from specalign.errors import UserError
from specalign.files import stored
from specalign.results import RECORDS_FILE, BenchmarkResult, GenerationRecord, read_records, read_result


def result_so_far(run: Path) -> BenchmarkResult:
    """The result of a run folder; where it has no rows yet, with those of the records that can be read."""
    result = read_result(run)
    if result.rows or result.status == "complete" or not stored(run / RECORDS_FILE).is_file():
        return result
    records = list(readable(run / RECORDS_FILE))
    statuses = [record.status for record in records]
    rows = sorted(
        summarise(records), key=lambda row: (row.temperature, row.kind != "target", row.method, row.gamma)
    )
    return replace(result, rows=rows, n_effective=statuses.count("ok"), n_failed=statuses.count("failed"))


def readable(path: Path) -> Iterator[GenerationRecord]:
    """Records up to the first damaged line."""
    records = read_records(path)
    while True:
        try:
            yield next(records)
        except (StopIteration, UserError):
            return
