"""The stages of a GPU day, on a CPU with tiny sizes: everything but the device."""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks/gpu_day"
STAGES = ["selftest", "decoding", "losses", "training", "train", "report", "sizes"]
LEFT = {
    "selftest": ["selftest.txt", "gpu_tests.txt"],
    "decoding": ["target.json", "drafter.json", "loop.json"],
    "losses": ["losses_bfloat16.json"],
    "training": ["training.json"],
    "train": ["jsd/train.jsonl", "jsd/provenance.json", "rank_anchored/recipe.toml"],
    "report": ["run/result.json", "run/records.jsonl", "run/report.md"],
    "sizes": ["target.json", "drafter.json", "loop.json"],
}


@pytest.fixture(name="script")
def script_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """The folder's scripts as modules: it is no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module
    for name in ("run", "stages", "carry"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages leave to one another."""
    return tmp_path_factory.mktemp("gpu_day")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_runs_and_leaves_its_archive(
    stage: str, work: Path, script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, as a report needs the students of the stage before it."""
    monkeypatch.setenv("SPECALIGN_CACHE", str(work / "cache"))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # under which pytest-benchmark writes no file
    run = script("run")
    words = [stage, "--device", "cpu", "--tiny", "--work", str(work), "--archives", str(work / "out")]
    assert run.main(words) == 0
    with tarfile.open(work / "out" / f"{stage}.tar.gz") as archive:
        names = archive.getnames()
        assert sum(member.size for member in archive.getmembers()) < 16 * 2**20
    assert {f"{stage}/{name}" for name in LEFT[stage]} <= set(names)
    assert not any(name.endswith(".safetensors") for name in names)
    monkeypatch.setattr(run, "execute", None)  # nothing is run twice
    assert run.main(words) == 0


def test_the_stages_are_those_of_the_readme(script: Callable[[str], ModuleType]) -> None:
    text = (FOLDER / "README.md").read_text()
    found = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert list(script("stages").STAGES) == STAGES == found


def test_a_stage_that_is_stopped_goes_on_where_it_was(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first command ends, the second runs into the limit and is told to end, the third is not begun."""
    run, stages = script("run"), script("stages")
    stopped = tmp_path / "stopped"
    waits = f"""
import pathlib, time
stopped = pathlib.Path({str(stopped)!r})
try:
    time.sleep(0 if stopped.exists() else 60)
except KeyboardInterrupt:
    stopped.touch()
"""
    commands = [
        stages.Command("one", [sys.executable, "-c", "print(1)"]),
        stages.Command("two", [sys.executable, "-c", waits]),
        stages.Command("three", [sys.executable, "-c", "raise SystemExit(1)"], result=tmp_path / "missed.json"),
    ]
    monkeypatch.setitem(run.STAGES, "losses", lambda day: commands)
    day = stages.Day("cpu", tmp_path)
    assert run.run("losses", day, tmp_path, limit_s=4.0) == run.STOPPED
    assert stopped.exists()
    assert not (tmp_path / "losses/three.txt").exists()
    assert run.run("losses", day, tmp_path) == run.FAILED  # the third fails: it left no result
    (tmp_path / "missed.json").write_text("{}")
    assert run.run("losses", day, tmp_path) == 0  # a bar that it missed
    assert (tmp_path / "losses/one.txt").read_text() == "1\n"  # once
    assert json.loads((tmp_path / "losses/three.done.json").read_text())["code"] == 1


def test_pieces_become_the_file_again(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the calls that bring them; nothing is installed before all are there."""
    carry = script("carry")
    wheel = tmp_path / "teacher-1-py3-none-any.whl"
    wheel.write_bytes(bytes(range(256)) * 5)
    installed: list[tuple[object, ...]] = []
    monkeypatch.setattr(carry, "_pip", lambda *words: installed.append(words))
    pieces = carry.cut(wheel, tmp_path / "all", piece_bytes=500)
    assert [path.stat().st_size for path in pieces] == [500, 500, 280]
    for place in (2, 0, 1):
        assert not installed
        folder = tmp_path / f"call-{place}"
        (folder / "piece.x").mkdir(parents=True)
        pieces[place].rename(folder / "piece.x" / pieces[place].name)
        whole = carry.join(folder, tmp_path / "site")
    (joined,) = whole
    assert joined.read_bytes() == wheel.read_bytes()
    assert joined.name == wheel.name
    assert installed[0][-1] == joined


def test_every_carried_wheel_has_its_version(script: Callable[[str], ModuleType]) -> None:
    carry = script("carry")
    pins = carry._lines(FOLDER.parents[1] / "constraints.txt")
    pinned = {carry._normal(line.split("==")[0]) for line in pins}
    assert {carry._normal(name) for name in carry._lines(FOLDER / "wheels.txt")} <= pinned
    assert carry.missing() == []


def test_gpu_tests_need_no_package_that_a_gpu_machine_may_lack() -> None:
    """They are collected there, with their conftest, beside torch, transformers and pytest alone."""
    tests = FOLDER.parents[1] / "tests"
    files = {*tests.glob("*/test_gpu.py"), tests / "decoding/conftest.py"}
    marker = "pytest.mark." + "gpu"
    assert {path for path in tests.rglob("test_*.py") if marker in path.read_text()} <= files
    for path in files:
        found = re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        assert set(found) <= {*sys.stdlib_module_names, "pytest", "torch", "transformers", "specalign"}
