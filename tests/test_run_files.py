"""Records and results: what is written reads back; what is damaged is refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specalign.errors import UserError
from specalign.records import SCHEMA_VERSION, GenerationRecord, StepTrace
from specalign.results import BenchmarkResult, Interval, ModelInfo
from specalign.run_files import SCHEMAS, read_records, read_result, record_line, write_result

STEPS = StepTrace([2, 1], [2, 1], [1, 1], [2, 2], [[0.5, 0.25], [1.0]], [0.1, 0.1], [0.2, 0.2], [0.0, 0.0])
RECORD = GenerationRecord(
    method="gkd", prompt_id="a", category="docs", repeat=0, order=3, temperature=1.0, top_k=0, top_p=1.0,
    gamma=2, rule="token", lossless=True, seed=1, n_prompt_tokens=7, status="ok",
    token_ids=[5, 6, 7, 8], finish_reason="length", text="naïve\n", steps=STEPS, wall_s=0.7,
)  # fmt: skip
TARGET = ModelInfo("target", "builtin:smollm2", 134_515_008, 30, 538_060_032)
RESULT = BenchmarkResult(
    status="complete", suite="demo", command=["specalign-bench"], config={}, provenance={},
    metrics_version="1", target=TARGET, drafters=[], n_requested=1, n_effective=1, n_failed=0,
)  # fmt: skip


def test_records_read_back(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    failed = dataclasses.replace(RECORD, repeat=1, status="failed", error="out of memory", steps=None)
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
    jsonschema.validate(json.loads((tmp_path / "result.json").read_text()), SCHEMAS["result"]())


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


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"wall_s": 0.0}, "wall_s is 0; a generation takes time"),
        ({"wall_s": -1.0}, "wall_s is -1; a generation takes time"),
        ({"prefill_s": -0.25}, "a time of -0.25 seconds"),
        ({"steps": dataclasses.replace(STEPS, verify_s=[0.2, -3.0])}, "a time of -3 seconds"),
        ({"steps": dataclasses.replace(STEPS, n_accepted=[1])}, "columns of its steps have different lengths"),
        ({"schema_version": SCHEMA_VERSION + 1}, "is of a newer specalign"),
    ],
)
def test_a_record_of_what_cannot_have_been(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record_line(RECORD) + record_line(dataclasses.replace(RECORD, **{"repeat": 1, **changes})))
    with pytest.raises(UserError, match=f"line 2: .*{problem}"):
        list(read_records(path))


def test_a_generation_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    again = dataclasses.replace(RECORD, wall_s=0.1, order=4)
    path.write_text(record_line(RECORD) + record_line(again))
    with pytest.raises(UserError, match="line 2: the same generation as line 1"):
        list(read_records(path))


def test_a_result_of_a_newer_version(tmp_path: Path) -> None:
    write_result(tmp_path, dataclasses.replace(RESULT, schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(UserError, match="is of a newer specalign"):
        read_result(tmp_path)


@given(place=st.integers(0, 10_000), byte=st.integers(0x80, 0xFF))
@settings(max_examples=30, deadline=None)
def test_bytes_that_are_no_text(tmp_path_factory: pytest.TempPathFactory, place: int, byte: int) -> None:
    """In either file, anywhere: one line that names the file."""
    folder = tmp_path_factory.mktemp("bytes")
    write_result(folder, RESULT)
    (folder / "records.jsonl").write_text(record_line(dataclasses.replace(RECORD, text="ASCII alone")))
    for name in ("result.json", "records.jsonl"):
        content = bytearray((folder / name).read_bytes())
        content[place % (len(content) - 1)] = byte
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"result\.json"):
        read_result(folder)
    with pytest.raises(UserError, match=r"records\.jsonl, line 1"):
        list(read_records(folder / "records.jsonl"))
