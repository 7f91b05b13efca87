"""A published run is small, complete and checkable, and its two forms say the same."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from specalign.benchmarks.cli import main
from specalign.errors import UserError
from specalign.files import file_sha256, stored
from specalign.reports.index import PUBLISHED
from specalign.reports.publish import FILES, published_name
from specalign.run_files import PROBES_FILE, RECORDS_FILE, RESULT_FILE, read_result, read_run, write_result

REPORTS = Path(__file__).parents[2] / "reports"
RUN = REPORTS / "2026-11-25_engine-own_cpu-2core"
RAW = (RECORDS_FILE, PROBES_FILE)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A run as it was measured: its raw files are not compressed."""
    folder = tmp_path / "plain"
    folder.mkdir()
    shutil.copy(RUN / RESULT_FILE, folder)
    for name in RAW:
        kept = stored(RUN / name)
        (folder / name).write_bytes(
            gzip.decompress(kept.read_bytes()) if kept.suffix == ".gz" else kept.read_bytes()
        )
    return folder


def test_both_forms_read_the_same_and_publishing_is_repeatable(plain: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        main(["publish", str(plain), "--output", str(tmp_path / name)])
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert read_run(tmp_path / "one") == read_run(plain)
    assert not {name for name in one if name not in FILES and not name.endswith(".png")}
    assert all(file_sha256(tmp_path / "one" / name) == file_sha256(plain / name) for name in RAW)
    for command in ("verify", "explain", "report"):
        main([command, str(tmp_path / "one")])


@pytest.mark.parametrize("name", RAW)
def test_damage_to_the_compressed_form_is_named(plain: Path, tmp_path: Path, name: str) -> None:
    main(["publish", str(plain), "--output", str(tmp_path / "out")])
    path = tmp_path / "out" / f"{name}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=rf"{name}\.gz is damaged"):
        main(["verify", str(tmp_path / "out")])
    path.write_bytes(gzip.compress(b"{}\n"))
    with pytest.raises(UserError, match="was changed after the run"):
        main(["verify", str(tmp_path / "out")])


def test_what_is_not_published(plain: Path, tmp_path: Path) -> None:
    output = ["--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"would take 0\.\d+ MB, more than 0\.1 \(largest, in MB: "):
        main(["publish", str(plain), *output, "--most-mb", "0.1"])
    result = read_result(plain)
    rows = [replace(result.rows[0], n_effective=1), *result.rows[1:]]
    write_result(plain, replace(result, rows=rows))
    with pytest.raises(UserError, match="n_effective is 1"):
        main(["publish", str(plain), *output])
    write_result(plain, replace(result, status="running"))  # killed: no command holds its folder
    with pytest.raises(UserError, match="is interrupted: only a complete run is published"):
        main(["publish", str(plain), *output])
    assert not (tmp_path / "out").exists()
    write_result(plain, result)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is there already"):
        main(["publish", str(plain), *output])


def test_the_name_says_when_what_and_where() -> None:
    name = published_name(read_result(RUN))
    assert PUBLISHED.fullmatch(name)
    assert name.endswith("_cpu-2core")
