"""What is shipped: the wheel holds the package alone, and all of it."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel built from a copy of the source, so that the tree stays as it is."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "specalign", folder / "specalign", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(folder)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_floor_is_where_the_bounds_are() -> None:
    """torch and transformers exactly; of the rest no pin is below its bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {Requirement(line).name.replace("-", "_"): Requirement(line) for line in project["dependencies"]}
    lines = (ROOT / "constraints-floor.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for name, version in pins.items():
        assert version in needed[name.replace("-", "_")].specifier, name
    for name in ("torch", "transformers"):
        assert str(needed[name].specifier) == ">=" + ".".join(pins[name].split(".")[:2])


def test_specalign_is_the_only_importable_name(shipped: set[str]) -> None:
    assert {name.split("/")[0] for name in shipped if ".dist-info/" not in name} == {"specalign"}


def test_every_tracked_file_of_the_package_is_in_it(shipped: set[str]) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "specalign"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(listed.stdout.split()) - shipped == set()


def test_both_commands_and_the_licence_are_in_it(shipped: set[str]) -> None:
    info = {name.split(".dist-info/")[1] for name in shipped if ".dist-info/" in name}
    assert {"entry_points.txt", "licenses/LICENSE"} <= info
    assert {"specalign/training/cli.py", "specalign/benchmarks/cli.py", "specalign/py.typed"} <= shipped
