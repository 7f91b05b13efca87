"""A benchmark run never removes what it did not write, never writes beside another, and is whole or says so."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from specalign import folders
from specalign.benchmarks.cli import main
from specalign.errors import UserError
from specalign.run_files import PROBES_FILE, RECORDS_FILE

Bench = Callable[..., list[str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, data_file: Path) -> Path:
    """A finished run, its reports and tables included."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = f"run --drafter copy={models_folder / 'copy'} --output {folder} --device cpu --threads 1".split()
    words += f"--target.model {models_folder / 'target'} --data.source {data_file} --data.split all".split()
    main(
        [
            *words,
            "--data.prompt",
            "w1 {document} w2",
            *["--decoding.gammas", "3", "--decoding.max-new-tokens", "12"],
        ]
    )
    main(["export", str(folder), "--csv", "--parquet"])
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, in the folder that the command line of ``bench`` names."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_overwrite_removes_all_files_of_a_run_and_no_other(run: Path, bench: Bench) -> None:
    (run / "notes.txt").write_text("mine")
    main(bench("--overwrite", "--decoding.max-new-tokens", "5", drafters=("copy",)))
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "records.csv").exists()
    (run / "notes.txt").unlink()
    folders.clear(run, {})
    assert folders.is_empty(run)


def test_inputs_in_the_output_are_never_removed(run: Path, bench: Bench) -> None:
    (run / "suite.toml").write_text("seed = 0\n")
    folders.list_written([run / "suite.toml"])
    words = bench("--overwrite", drafters=("copy",))
    for flag, name in (("--suite", "suite.toml"), ("--data.source", RECORDS_FILE)):
        with pytest.raises(UserError, match=f"{flag.removeprefix('--')} is .* would delete"):
            main([*words, flag, str(run / name)])
    assert (run / "suite.toml").exists()
    assert (run / RECORDS_FILE).stat().st_size > 0


def test_a_complete_run_without_its_raw_files_is_not_called_complete(
    run: Path, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for name in (RECORDS_FILE, PROBES_FILE):
        content = (run / name).read_bytes()
        for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"")):
            damage(run / name)
            with pytest.raises(UserError, match=rf"{name}.*or use --overwrite"):
                main(bench(drafters=("copy",)))
            (run / name).write_bytes(content)
    assert "complete already" not in capsys.readouterr().out


def test_a_second_command_in_the_same_folder_is_refused(bench: Bench, tmp_path: Path) -> None:
    taken = rf"in use by specalign-train \(pid {os.getpid()} on"
    with folders.hold(tmp_path / "run", "specalign-train"), pytest.raises(UserError, match=taken):
        main(bench(drafters=("copy",)))


def test_comparison_and_index_leave_foreign_files(run: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My project")
    with pytest.raises(UserError, match="is no index of runs"):
        main(["index", "--folder", str(tmp_path)])
    (tmp_path / "comparison.md").write_text("mine")
    with pytest.raises(UserError, match=r"comparison\.md is there already"):
        main(["compare", str(run), str(run), "--output", str(tmp_path)])
    assert (tmp_path / "comparison.md").read_text() == "mine"
    for _ in range(2):
        main(["compare", str(run), str(run), "--output", str(tmp_path / "new")])
