"""What the hub's cache holds is enough: both commands with HF_HUB_OFFLINE=1, and no connection is even tried."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COMMANDS = """\
import socket, sys
def refuse(*_):
    raise AssertionError("a connection was tried")
socket.socket.connect = refuse
from specalign.benchmarks.cli import main as bench
from specalign.training.cli import main as train
data, run = sys.argv[1:]
shared = ["--data", data, "--data.prompt", "w1 {document}", "--data.max-prompt-tokens", "16", "--device", "cpu"]
recipe = ["--method", "sft", "--teacher.model", "tiny/teacher", "--student.n-layers", "2", "--budget.steps", "1"]
recipe += ["--data.max-response-tokens", "6", "--output", run + "/student", *shared]
train(["check", *recipe])
train(recipe)
suite = ["--target.model", "tiny/teacher", "--drafter", "slice=" + run + "/student", "--data.split", "validation"]
suite += ["--limit", "1", "--decoding.max-new-tokens", "4", "--output", run + "/bench", *shared]
bench(["check", *suite])
bench(["run", *suite])
"""


@pytest.mark.slow
def test_both_commands_work_from_the_hubs_cache_alone(
    teacher_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    cached = tmp_path / "hub" / "models--tiny--teacher"
    shutil.copytree(teacher_folder, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "SPECALIGN_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(data_folder), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bench" / "report.md").is_file()
