"""Probes: what is written reads back; what is damaged or changed is refused by name."""

import dataclasses
from pathlib import Path

import pytest

from specalign.errors import UserError
from specalign.files import file_sha256
from specalign.probes import CallProbe, CopyProbe, ForcedProbe, ModelProbe, Probe, copy_rate
from specalign.results import BenchmarkResult, ModelInfo
from specalign.run_files import PROBES_FILE, RECORDS_FILE, probe_lines, read_probes, read_run, write_result

PROBES: list[Probe] = [
    ModelProbe("target", 1000, 250),
    CopyProbe(1e10),
    CopyProbe(3e10),
    CallProbe("target", None, 12, 1, [0.1, 0.2]),
    ForcedProbe("ours", "p0", 0, 1.0, [0.5, None, 1.0]),
]
RESULT = BenchmarkResult(
    status="complete", suite="s", command=[], config={}, provenance={}, metrics_version="1",
    target=ModelInfo("target", "m", 1, 1, 1), drafters=[], n_requested=0, n_effective=0, n_failed=0,
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / RECORDS_FILE).write_text("")
    (tmp_path / PROBES_FILE).write_text(probe_lines(PROBES))
    records, probes = (file_sha256(tmp_path / name) for name in (RECORDS_FILE, PROBES_FILE))
    write_result(tmp_path, dataclasses.replace(RESULT, records_sha256=records, probes_sha256=probes))
    return tmp_path


def test_probes_read_back(run: Path) -> None:
    assert read_run(run).probes == read_probes(run / PROBES_FILE) == PROBES
    assert copy_rate(PROBES) == 2e10


def test_a_damaged_line_is_named(run: Path) -> None:
    (run / PROBES_FILE).write_text(probe_lines(PROBES).replace('"n_tokens":1', '"n_tokens":"one"'))
    with pytest.raises(UserError, match=r"line 4: call\.n_tokens"):
        read_probes(run / PROBES_FILE)


@pytest.mark.parametrize("name", [RECORDS_FILE, PROBES_FILE])
def test_changed_cut_or_missing_files_are_refused(run: Path, name: str) -> None:
    with (run / name).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=f"{name} was changed after the run"):
        read_run(run)
    (run / name).unlink()
    with pytest.raises(UserError, match=f"no such file: .*{name}"):
        read_run(run)


def test_a_run_from_before_there_were_probes_is_read(run: Path) -> None:
    result = read_run(run).result
    (run / PROBES_FILE).unlink()
    write_result(run, dataclasses.replace(result, probes_sha256=""))
    assert read_run(run).probes == []
