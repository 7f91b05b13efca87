"""specalign-bench run, end to end, with tiny models."""

from collections.abc import Callable
from pathlib import Path

from specalign.benchmarks.cli import main
from specalign.results import RECORDS_FILE, SummaryRow, read_records, read_result

Bench = Callable[..., list[str]]


def rows_of(run: Path) -> dict[tuple[str, float], SummaryRow]:
    return {(row.method, row.temperature): row for row in read_result(run).rows}


def test_a_run_measures_every_method_at_every_temperature(bench: Bench, tmp_path: Path) -> None:
    main(bench())
    run = tmp_path / "run"
    result, rows = read_result(run), rows_of(run)
    methods = ("target", "prompt_lookup", "copy", "small")
    assert list(rows) == [(method, t) for t in (0.0, 1.0) for method in methods]
    assert result.status == "complete"
    assert result.n_requested == result.n_effective == 4 * 4 * 2
    assert len(list(read_records(run / RECORDS_FILE))) == result.n_requested
    assert (run / "report.md").read_text().startswith("# ")
