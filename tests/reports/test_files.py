"""What is made for other readers: the table of records and the index of published runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from specalign.analysis.study import read_curves
from specalign.benchmarks.cli import main
from specalign.errors import UserError
from specalign.reports.export import NamedTable, _cell, export, latex, report_tables
from specalign.reports.index import index_text
from specalign.results import ModelInfo
from specalign.run_files import RECORDS_FILE, read_records
from tests.test_curves import log

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


def test_every_table_of_a_report_is_exported(make_run: Callable[..., Path]) -> None:
    """As many as report.md has, with its cells."""
    run = make_run()
    main(["report", str(run)])
    shown = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in (run / "report.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    n_tables = sum(set("".join(cells)) == {"-"} for cells in shown)
    main(["export", str(run), "--csv", "--latex"])
    names = sorted(path.stem for path in (run / "tables").glob("*.csv"))
    assert names == sorted(path.stem for path in (run / "tables").glob("*.tex"))
    assert len(names) == n_tables
    table = pd.read_csv(run / "tables" / "comparison-temperature-0.csv", dtype=str, keep_default_na=False)
    assert [re.sub(r"\\", "", cell) for cell in shown[0]] == list(table.columns)
    assert [re.sub(r"\\", "", cell) for cell in shown[2]] == table.iloc[0].tolist()


@pytest.mark.parametrize("run", sorted(REPORTS.glob("2026*_cpu-2core")), ids=lambda path: path.name)
def test_the_latex_of_published_runs_needs_booktabs_and_nothing_else(run: Path) -> None:
    """ASCII, every special character escaped, as many columns in each line as in the first."""
    for table in report_tables(run):
        text = latex(table)
        assert text.isascii(), sorted({letter for letter in text if not letter.isascii()})
        assert text.count("\\toprule") == text.count("\\bottomrule") == 1
        lines = [line for line in text.splitlines() if line.endswith("\\\\")]
        assert len(lines) == len(table.frame) + 1
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {table.frame.shape[1] - 1}
        assert not re.search(r"(?<!\\)[%#_]", "".join(lines))


def test_what_a_table_holds_is_no_latex_command_and_no_formula() -> None:
    hostile = r"\input{/etc/passwd} $x$ a_b 50% & #1 ~ ^ {"
    frame = pd.DataFrame([[hostile, "-3.1 %", "=1+1"]], columns=["a", "b", "c"])
    text = latex(NamedTable("x", "x", frame))
    assert r"\textbackslash input\{" in text
    assert r"\$x\$ a\_b 50\% \& \#1" in text
    assert frame.map(_cell).iloc[0].tolist()[1:] == ["-3.1 %", "'=1+1"]


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


STUDY = REPORTS / "2026-11-25_study-long-seeds_cpu-2core"


def trained(run: Path, weights: str) -> Path:
    """A training run whose log says something."""
    log(run, [0.1, 0.3])
    (run / "provenance.json").write_text(json.dumps({"weights_sha256": weights}))
    return run


def test_the_learning_curves_of_the_drafters_are_exported_beside_the_run(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that was trained anew since has another drafter's: it is named and left out."""

    def drafter(name: str, seed: int, weights: str, found: str) -> ModelInfo:
        source = str(trained(tmp_path / name, found))
        return ModelInfo(name, source, 1, 1, 1, "gkd", training={"seed": seed, "weights_sha256": weights})

    run = make_run(drafters=[drafter("gkd-1", 1, "a", "a"), drafter("sft", 0, "b", "c")])
    main(["export", str(run), "--csv", "--svg", "--pdf"])
    table = pd.read_csv(run / "curves.csv")
    assert table[["arm", "seed", "step", "alpha"]].to_numpy().tolist() == [
        ["gkd", 1, 0, 0.1],
        ["gkd", 1, 2, 0.3],
    ]
    assert all((run / f"curves.{ending}").stat().st_size > 1000 for ending in ("svg", "pdf"))
    assert "learning curves are left out, their runs are not here: sft\n" in capsys.readouterr().out


def test_a_studys_learning_curves_are_those_that_it_keeps(tmp_path: Path) -> None:
    for path in STUDY.glob("*.json*"):
        shutil.copy(path, tmp_path)
    (line,) = export(tmp_path, ["csv"])
    assert line == str(tmp_path / "records.csv")
    kept = read_curves(STUDY)
    table = pd.read_csv(tmp_path / "curves.csv")
    assert set(table["arm"]) == set(kept)
    assert len(table) == sum(len(lines) for seeds in kept.values() for lines in seeds.values())


def test_a_folder_of_training_runs_is_exported_as_learning_curves(tmp_path: Path) -> None:
    for name in ("gkd/seed-0", "gkd/seed-1", "=sft"):
        log(tmp_path / name, [0.1, 0.3], seed=0)
    main(["export", str(tmp_path), "--csv", "--svg", "--pdf"])
    assert {path.name for path in (tmp_path / "comparison").glob("curves.*")} == {
        "curves.csv",
        "curves.svg",
        "curves.pdf",
    }
    table = pd.read_csv(tmp_path / "comparison" / "curves.csv")
    assert sorted(set(table["arm"])) == ["'=sft", "gkd"]
    with pytest.raises(UserError, match=r"--csv, --svg, --pdf, not --latex"):
        main(["export", str(tmp_path), "--latex"])
    with pytest.raises(UserError, match=r"no such file: .*result\.json"):
        main(["export", str(tmp_path / "comparison"), "--csv"])


def test_export_asks_for_a_format(make_run: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="--parquet, --csv, --latex, --svg or --pdf"):
        main(["export", str(make_run())])


def test_the_index_of_published_runs_is_up_to_date() -> None:
    assert (REPORTS / "README.md").read_text(encoding="utf-8") == index_text(REPORTS)
