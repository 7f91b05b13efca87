"""A run removes only files that it listed itself, and two commands never write into one folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specalign import folders
from specalign.errors import UserError
from specalign.files import write_text

NAMES = st.sampled_from(
    ["a.json", "notes.txt", "checkpoints/step-1/model", "checkpoints/mine", "tensorboard/x"]
)


def files_in(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and folders.OURS not in path.parts
    }


@given(st.sets(NAMES), st.sets(NAMES))
@settings(max_examples=60, deadline=None)
def test_overwrite_removes_what_was_listed_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, ours: set[str], theirs: set[str]
) -> None:
    run = tmp_path_factory.mktemp("run")
    folders.begin(run)
    for name in ours:
        write_text(run / name, "ours")
    for name in theirs - ours:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("theirs")
    folders.clear(run, {})
    assert files_in(run) == theirs - ours
    assert all(any(path.iterdir()) for path in run.rglob("*") if path.is_dir())
    if not theirs - ours:
        assert folders.is_empty(run)


def test_a_folder_without_a_list_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("# years of work")
    folders.begin(tmp_path)
    with pytest.raises(UserError, match="no run of specalign listed"):
        folders.clear(tmp_path, {})
    assert folders.advice(tmp_path, {}) == "choose another --output"


def test_a_foreign_file_is_not_written_over(tmp_path: Path) -> None:
    folders.begin(tmp_path)
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(UserError, match=r"report\.md is there already"):
        write_text(tmp_path / "report.md", "ours")
    assert (tmp_path / "report.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["../outside", "linked/inside", "{absolute}"])
def test_no_list_reaches_out_of_its_folder(tmp_path: Path, name: str) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (elsewhere / "inside").write_text("precious")
    (tmp_path / "outside").write_text("precious")
    folders.begin(run)
    (run / "linked").symlink_to(elsewhere)
    (run / folders.FILES).write_text(name.format(absolute=tmp_path / "outside") + "\n")
    if name.startswith("linked"):
        with pytest.raises(UserError, match="leads out of"):
            folders.clear(run, {})
    else:
        folders.clear(run, {})
    assert (elsewhere / "inside").read_text() == (tmp_path / "outside").read_text() == "precious"


def test_a_listed_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folders.begin(run)
    write_text(run / "a", "ours")
    (run / "a").unlink()
    (tmp_path / "precious").write_text("precious")
    (run / "a").symlink_to(tmp_path / "precious")
    folders.clear(run, {})
    assert files_in(run) == set()
    assert (tmp_path / "precious").exists()


def test_links_in_the_place_of_our_own_files_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folders.begin(run)
    (tmp_path / "precious").write_text("precious")
    (run / folders.HOLDER).symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="holds links"), folders.hold(run, "tool"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("shown", ["{run}", "{run}/recipe.toml", "spec_bench:{run}/recipe.toml", "{link}"])
def test_inputs_are_never_removed(tmp_path: Path, shown: str) -> None:
    run, link = tmp_path / "run", tmp_path / "link"
    folders.begin(run)
    write_text(run / "recipe.toml", "ours")
    link.symlink_to(run)
    given_ = {"student.model": shown.format(run=run, link=link)}
    with pytest.raises(UserError, match=r"student\.model is .* which --overwrite would delete"):
        folders.clear(run, given_)
    assert files_in(run) == {"recipe.toml"}
    folders.removable(run, {"teacher.model": str(tmp_path), "data.source": "builtin:docstrings"})


HOLDER = """
import sys, time
from pathlib import Path
from specalign.folders import hold
with hold(Path(sys.argv[1]), "specalign-train"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_command_says_who_holds_the_folder_and_a_crash_releases_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=rf"specalign-train \(pid {process.pid} on .*, since 20.* UTC\)"),
            folders.hold(run, "specalign-bench"),
        ):
            pass
        process.kill()
    with folders.hold(run, "specalign-bench"):
        assert f'"pid": {os.getpid()}' in (run / folders.HOLDER).read_text()


def test_a_folder_in_which_nothing_was_done_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="preflight"), folders.hold(tmp_path / "new", "tool"):
        raise UserError("preflight")
    assert not (tmp_path / "new").exists()


def test_an_impossible_output_is_known_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    for place, said in {
        "file": "file is not a folder",
        "file/below/it": "file is not a folder",
        "nowhere/x": "nowhere is not a folder",
        "n" * 300: "longer than 255 bytes",
        f"new/{'é' * 200}": "longer than 255 bytes",
    }.items():
        with pytest.raises(UserError, match=said):
            folders.require_usable(tmp_path / place)
    for place in ("", "new", "new/below", "n" * 255):
        folders.require_usable(tmp_path / place)


def test_the_next_command_removes_what_a_killed_one_was_writing(tmp_path: Path) -> None:
    folders.begin(tmp_path)
    for name in ("result.json", "checkpoints/best.safetensors"):
        write_text(tmp_path / name, "whole")
        (tmp_path / name).with_name(f".{Path(name).name}.a1b2c3d_").write_text("a part")
    (tmp_path / ".notes.a1b2c3d_").write_text("somebody's")
    with folders.hold(tmp_path, "tool"):
        pass
    assert files_in(tmp_path) == {"result.json", "checkpoints/best.safetensors", ".notes.a1b2c3d_"}
