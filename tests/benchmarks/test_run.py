"""specalign-bench run, end to end, with tiny models."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specalign.benchmarks import runner
from specalign.benchmarks.cli import main, parse_run
from specalign.errors import UserError, run_cli
from specalign.records import GenerationRecord, record_key
from specalign.results import SummaryRow
from specalign.run_files import RECORDS_FILE, read_records, read_result, record_line, write_result

Bench = Callable[..., list[str]]
METHODS = ("target", "prompt_lookup", "copy", "small")


def measure(words: list[str]) -> None:
    """The run alone, without its report."""
    runner.run(parse_run(words[1:]))


def rows_of(run: Path) -> dict[tuple[str, float], SummaryRow]:
    return {(row.method, row.temperature): row for row in read_result(run).rows}


def records_of(run: Path) -> list[GenerationRecord]:
    return list(read_records(run / RECORDS_FILE))


def test_a_run_measures_every_method_at_every_temperature(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(bench())
    run = tmp_path / "run"
    result, rows, records = read_result(run), rows_of(run), records_of(run)
    assert "report: " in capsys.readouterr().out
    assert list(rows) == [(method, t) for t in (0.0, 1.0) for method in METHODS]
    assert result.status == "complete"
    assert len(records) == result.n_requested == result.n_effective == 4 * 4 * 2
    assert [record.order for record in records] == list(range(len(records)))
    assert (run / "report.md").read_text().startswith("# ")
    checks = {check.name: check.passed for check in result.checks}
    assert checks["lossless"]
    assert checks["token accounting"]
    assert checks["samples"]
    copy = rows["copy", 0.0]
    assert copy.alpha_counted
    assert copy.alpha_counted.value == copy.exact_match_target == 1.0
    assert copy.survival_by_position == [1.0, 1.0, 1.0]
    sampled = rows["copy", 1.0]
    assert sampled.alpha_expected
    assert sampled.alpha_expected.value == pytest.approx(1, abs=1e-4)
    assert rows["target", 0.0].speedup is None
    assert rows["small", 0.0].alpha_counted
    assert rows["small", 0.0].alpha_counted.value < 0.5
    assert all(rows[method, 0.0].exact_match_target == 1 for method in METHODS[1:])


def test_a_crashed_run_is_reported_as_far_as_it_came(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--decoding.max-new-tokens", "4", "--decoding.temperatures", "0", "--include"]
    measure(bench(*short, drafters=("small",)))
    run = tmp_path / "run"
    lines = (run / RECORDS_FILE).read_text().splitlines(keepends=True)
    (run / RECORDS_FILE).write_text("".join(lines[:6]) + lines[6][:40])  # killed while it wrote the seventh
    crashed = dataclasses.replace(
        read_result(run),
        status="running",
        rows=[],
        checks=[],
        n_effective=0,
        records_sha256="",
        probes_sha256="",
    )
    write_result(run, crashed)
    main(["report", str(run), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert sum(row["n_effective"] for row in shown["rows"]) == 6
    report = (run / "report.md").read_text()
    assert "the run is interrupted: 6 of 8 generations are there" in report
    assert "line 7: cut off" in report


def test_one_line_of_json_says_what_the_table_says(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--decoding.max-new-tokens", "4", "--decoding.temperatures", "0", "--include"]
    main(bench(*short, "--json", drafters=("small",)))
    main(["report", str(tmp_path / "run"), "--json"])
    ran, rebuilt = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert ran == rebuilt
    assert ran["status"] == "complete"
    assert [row["method"] for row in ran["rows"]] == ["target", "small"]
    assert Path(ran["report"]).is_file()


def test_generations_of_the_same_seed_are_the_same(bench: Bench, tmp_path: Path) -> None:
    """The order of the run and the tokens follow from the seed alone."""
    short = ["--decoding.max-new-tokens", "4", "--decoding.temperatures", "1", "--include", "--output"]
    measure(bench(*short, str(tmp_path / "run"), drafters=("small",)))
    measure(bench(*short, str(tmp_path / "again"), drafters=("small",)))
    measure(bench(*short, str(tmp_path / "other"), "--seed", "1", drafters=("small",)))
    first, again, other = (
        [(record.prompt_id, record.method, tuple(record.token_ids)) for record in records_of(tmp_path / name)]
        for name in ("run", "again", "other")
    )
    assert first == again
    assert [key[:2] for key in first] != [key[:2] for key in other]


def test_an_interrupted_run_is_usable_and_goes_on(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    real = runner._generate_one
    calls: list[None] = []

    def stop_after_nine(*arguments: Any) -> GenerationRecord:
        calls.append(None)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(runner, "_generate_one", stop_after_nine)
    words = bench(drafters=("copy",))
    assert run_cli("specalign-bench", lambda: measure(words)) == 130
    assert "Traceback" not in capsys.readouterr().err
    stopped = read_result(run)
    assert (stopped.status, stopped.n_effective, stopped.n_requested) == ("interrupted", 9, 24)
    assert sum(row.n_effective for row in stopped.rows) == 9
    with open(run / RECORDS_FILE, "a") as file:
        file.write('{"method": "tar')  # a crash in the middle of a line
    before = records_of_whole_lines(run)
    measure(words)
    assert read_result(run).status == "complete"
    assert records_of(run)[:9] == before
    assert len({record_key(record) for record in records_of(run)}) == 24
    n_calls = len(calls)
    measure(words)
    assert len(calls) == n_calls, "a complete run is not run again"


def records_of_whole_lines(run: Path) -> list[GenerationRecord]:
    text = (run / RECORDS_FILE).read_text()
    (run / "whole.jsonl").write_text(text[: text.rindex("\n") + 1])
    records = list(read_records(run / "whole.jsonl"))
    (run / "whole.jsonl").unlink()
    return records


def test_a_failed_generation_is_counted_and_enters_no_mean(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner._decode

    def fail_on_one_prompt(suite: Any, config: Any, cell: Any, *ids: Any, **options: Any) -> Any:
        if cell.prompt.id == "2" and cell.method == "copy":
            raise RuntimeError("out of memory")
        return real(suite, config, cell, *ids, **options)

    monkeypatch.setattr(runner, "_decode", fail_on_one_prompt)
    measure(bench(drafters=("copy",)))
    run = tmp_path / "run"
    result, row = read_result(run), rows_of(run)["copy", 0.0]
    assert (result.n_failed, row.n_requested, row.n_effective, row.n_failed) == (2, 4, 3, 1)
    assert {record.error for record in records_of(run) if record.status == "failed"} == {
        "RuntimeError: out of memory"
    }
    assert {check.name: check.passed for check in result.checks}["samples"] is False


def test_another_run_is_never_overwritten_unasked(bench: Bench, tmp_path: Path, models_folder: Path) -> None:
    run = tmp_path / "run"
    measure(bench(drafters=("copy",)))
    before = (run / RECORDS_FILE).read_bytes()
    with pytest.raises(UserError, match=r"holds another run .*decoding"):
        measure(bench("--decoding.max-new-tokens", "5", drafters=("copy",)))
    with pytest.raises(UserError, match="no such model folder"):
        measure(bench("--overwrite", "--target.model", str(tmp_path / "missing"), drafters=("copy",)))
    assert (run / RECORDS_FILE).read_bytes() == before
    measure(bench("--overwrite", "--decoding.max-new-tokens", "5", drafters=("copy",)))
    assert max(len(record.token_ids) for record in records_of(run)) == 5


def test_a_drafter_that_changed_since_is_another_run(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    measure(bench(drafters=("copy",)))
    result = read_result(run)
    checkpoints = result.provenance["checkpoints"] | {"copy": "0" * 64}
    write_result(run, dataclasses.replace(result, provenance=result.provenance | {"checkpoints": checkpoints}))
    with pytest.raises(UserError, match="the weights of copy"):
        measure(bench(drafters=("copy",)))


def test_a_target_that_answers_otherwise_is_another_run(
    bench: Bench, tmp_path: Path, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights under another config: two targets in one run's records would compare with each other."""

    def stop(*_arguments: object) -> GenerationRecord:
        raise KeyboardInterrupt

    shutil.copytree(models_folder / "target", tmp_path / "target")
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_generate_one", stop)
        assert (
            run_cli("specalign-bench", lambda: measure(bench("--target.model", str(tmp_path / "target"))))
            == 130
        )
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    changed = config | {"rms_norm_eps": 0.5}
    (tmp_path / "target" / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="was begun with another model as target"):
        measure(bench("--target.model", str(tmp_path / "target")))


def test_a_changed_records_file_is_refused_by_the_report(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    measure(bench(drafters=("copy",)))
    first, *rest = records_of(run)
    forged = dataclasses.replace(first, wall_s=first.wall_s / 2)
    (run / RECORDS_FILE).write_text("".join(record_line(record) for record in [forged, *rest]))
    with pytest.raises(UserError, match="was changed after the run"):
        main(["report", str(run)])


def test_a_lossy_rule_is_labelled_where_it_is_lossy(bench: Bench, tmp_path: Path) -> None:
    measure(bench("--decoding.rule", "lenience", "--include", drafters=("small",)))
    labels = {(row.method, row.temperature): row.lossless for row in read_result(tmp_path / "run").rows}
    assert labels == {("target", 0.0): True, ("small", 0.0): True, ("target", 1.0): True, ("small", 1.0): False}


def test_runs_can_be_compared(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure(bench(drafters=("copy",)))
    measure(bench("--output", str(tmp_path / "two"), drafters=("small",)))
    main(["compare", str(tmp_path / "run"), str(tmp_path / "two"), "--output", str(tmp_path / "both")])
    assert "small" in (tmp_path / "both" / "comparison.md").read_text()
