"""What is made for other readers: the table of records and the index of published runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from specalign.benchmarks.cli import main
from specalign.errors import UserError
from specalign.reports.index import index_text
from specalign.run_files import RECORDS_FILE, read_records

REPORTS = Path(__file__).parents[2] / "reports"


def test_parquet_and_csv_hold_every_record(make_run: Callable[..., Path]) -> None:
    run = make_run()
    main(["export", str(run), "--parquet", "--csv"])
    records = list(read_records(run / RECORDS_FILE))
    table, text = pd.read_parquet(run / "records.parquet"), pd.read_csv(run / "records.csv")
    assert list(table["wall_s"]) == list(text["wall_s"]) == [record.wall_s for record in records]
    emitted = [record.steps.n_emitted for record in records if record.steps]
    assert [list(cell) for cell in table["steps.n_emitted"]] == emitted
    assert [json.loads(cell) for cell in text["steps.n_emitted"]] == emitted


def test_pictures_are_exported_on_demand(make_run: Callable[..., Path]) -> None:
    run = make_run()
    main(["report", str(run)])
    shown = {path.stem for path in run.glob("*.png")}
    assert not list(run.glob("*.svg"))
    main(["export", str(run), "--svg", "--pdf"])
    assert {path.stem for path in run.glob("*.svg")} == {path.stem for path in run.glob("*.pdf")} == shown
    drawn = (run / "speedup.svg").read_text(encoding="utf-8")
    main(["export", str(run), "--svg"])
    assert (run / "speedup.svg").read_text(encoding="utf-8") == drawn
    assert "<text" not in drawn, "letters are paths: the file looks the same everywhere"


def test_export_asks_for_a_format(make_run: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="--parquet, --csv, --svg or --pdf"):
        main(["export", str(make_run())])


def test_the_index_of_published_runs_is_up_to_date() -> None:
    assert (REPORTS / "README.md").read_text(encoding="utf-8") == index_text(REPORTS)
