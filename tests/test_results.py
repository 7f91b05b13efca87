"""Records and results: what is written reads back; what is damaged is refused by name."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

from specalign.errors import UserError
from specalign.results import (
    BenchmarkResult,
    GenerationRecord,
    Interval,
    ModelInfo,
    StepTrace,
    read_records,
    read_result,
    record_line,
    result_schema,
    write_result,
)

STEPS = StepTrace([2, 1], [2, 1], [1, 1], [2, 2], [[0.5, 0.25], [1.0]], [0.1, 0.1], [0.2, 0.2], [0.0, 0.0])
RECORD = GenerationRecord(
    method="gkd", prompt_id="a", category="docs", repeat=0, order=3, temperature=1.0, top_k=0, top_p=1.0,
    gamma=2, rule="token", lossless=True, seed=1, n_prompt_tokens=7, status="ok",
    token_ids=[5, 6, 7, 8], finish_reason="length", text="naïve\n", steps=STEPS,
)  # fmt: skip
TARGET = ModelInfo("target", "builtin:smollm2", 134_515_008, 30, 538_060_032)
RESULT = BenchmarkResult(
    status="complete", suite="demo", command=["specalign-bench"], config={}, provenance={},
    metrics_version="1", target=TARGET, drafters=[], n_requested=1, n_effective=1, n_failed=0,
)  # fmt: skip


def test_records_read_back(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    failed = dataclasses.replace(RECORD, status="failed", error="out of memory", steps=None)
    path.write_text(record_line(RECORD) + record_line(failed))
    assert list(read_records(path)) == [RECORD, failed]


def test_a_line_cut_off_by_a_crash_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record_line(RECORD) + record_line(RECORD)[:-20])
    with pytest.raises(UserError, match="line 2: cut off"):
        list(read_records(path))


def test_a_damaged_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record_line(RECORD).replace('"gamma":2', '"gamma":"two"'))
    with pytest.raises(UserError, match="line 1: gamma"):
        list(read_records(path))


def test_result_reads_back_and_fits_its_published_schema(tmp_path: Path) -> None:
    write_result(tmp_path, RESULT)
    assert read_result(tmp_path) == RESULT
    jsonschema.validate(json.loads((tmp_path / "result.json").read_text()), result_schema())


def test_unknown_field_and_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*result\.json"):
        read_result(tmp_path)
    write_result(tmp_path, RESULT)
    text = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(text.replace('"suite"', '"suit"'))
    with pytest.raises(UserError, match="not a valid result"):
        read_result(tmp_path)


def test_bounds_of_an_interval_may_be_absent() -> None:
    assert Interval(1.0) == Interval(1.0, None, None)
