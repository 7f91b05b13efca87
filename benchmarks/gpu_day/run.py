"""A GPU day: what a machine with a GPU and no network must show and measure, in stages of at most eight minutes.

    python benchmarks/gpu_day/run.py STAGE ... [--device cuda] [--archives FOLDER]

A stage that was stopped, by its limit or by the machine, goes on with the same command: what ended is not run again.
Each leaves one archive, STAGE.tar.gz, with logs, results and reports, and without weights. Exit code 0: all done;
75: stopped at the limit; 1: a command failed (its log is in the archive). A bar that a benchmark misses is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

from stages import ROOT, STAGES, Command, Day

LIMIT_S = 460.0
"""A stage's, under the eight minutes that it is promised to take, its archive included."""
GRACE_S = 15.0
"""What a command that is told to end may take to write what it has."""
STOPPED, FAILED = 75, 1
KEPT = (".json", ".jsonl", ".txt", ".md", ".html", ".toml", ".png")
MOST_BYTES = 8 * 2**20
"""Of one file in an archive."""


def main(arguments: list[str] | None = None) -> int:
    """Run the stages that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=[*STAGES, "all"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/gpu_day", help="models, runs and results")
    parser.add_argument("--archives", type=Path, help="where archives go; default: the work folder")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds that each stage may take")
    parser.add_argument("--train-s", type=int, default=Day.train_s, help="seconds of training an arm gets")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test on a CPU")
    args = parser.parse_args(arguments)
    day = Day(args.device, args.work.resolve(), args.tiny, args.train_s)
    names = list(STAGES) if "all" in args.stages else args.stages
    codes = [run(name, day, args.archives or day.work, args.limit_s) for name in names]
    return max(codes, key=[0, FAILED, STOPPED].index)


def run(name: str, day: Day, archives: Path, limit_s: float = LIMIT_S) -> int:
    """One stage, from where it was left."""
    end = time.monotonic() + limit_s
    folder = day.folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    code = 0
    for command in STAGES[name](day):
        place = command.place(day, name)
        place.mkdir(parents=True, exist_ok=True)
        done = place / f"{command.name}.done.json"
        if done.exists():
            continue
        found = execute(command, place / f"{command.name}.txt", end)
        print(f"{name}: {command.name} {told(found)}", flush=True)
        if found["code"] == 0 or (found["code"] == 1 and command.result and command.result.exists()):
            done.write_text(json.dumps(found))
            continue
        code = STOPPED if found["code"] is None else FAILED
        break
    archives.mkdir(parents=True, exist_ok=True)
    pack(folder, archives / f"{name}.tar.gz")
    return code


def execute(command: Command, log: Path, end: float) -> dict[str, object]:
    """Run one command until ``end``; its exit code (None: it was stopped) and seconds. Its output goes to ``log``."""
    begun = time.monotonic()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command.words,
            cwd=ROOT,
            env={**environment, **command.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _stop(process)
    return {"words": command.words, "code": code, "seconds": round(time.monotonic() - begun, 1)}


def told(found: dict[str, object]) -> str:
    """How a command ended."""
    ended = "stopped at the stage's limit" if found["code"] is None else f"ended with {found['code']}"
    return f"{ended} after {found['seconds']} s"


def pack(folder: Path, archive: Path) -> None:
    """What is worth carrying home of a stage."""
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix in KEPT and path.stat().st_size <= MOST_BYTES:
                tar.add(path, str(Path(folder.name) / path.relative_to(folder)))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The command and all that it started: as Ctrl-C would, then for good."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


if __name__ == "__main__":
    sys.exit(main())
