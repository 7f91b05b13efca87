"""Two processes do what one does with the same prompts, and leave one student."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from specalign.config import write_config
from specalign.training import folder
from specalign.training.config import TrainConfig
from specalign.training.session import train_all


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def launch(recipe: Path, ranks: int) -> list[subprocess.Popen[bytes]]:
    """Processes by themselves, so that one can be killed alone."""
    shared = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    command = [sys.executable, "-m", "specalign.training", "--recipe", str(recipe)]
    return [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.DEVNULL
        )
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("vocabulary", [0, pytest.param(20, marks=pytest.mark.slow)])
def test_two_processes_equal_one(tiny: Callable[..., TrainConfig], tmp_path: Path, vocabulary: int) -> None:
    student = {"draft_vocabulary": vocabulary}
    one = tiny("sft", output=tmp_path / "one", optimiser={"batch": 2, "accumulation": 2}, student=student)
    two = tiny("sft", output=tmp_path / "two", optimiser={"batch": 1, "accumulation": 2}, student=student)
    train_all([one])
    write_config(tmp_path / "two.toml", two)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command = [*torchrun, "-m", "specalign.training", "--recipe", str(tmp_path / "two.toml")]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    ours, theirs = load_file(one.output / "model.safetensors"), load_file(two.output / "model.safetensors")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    for line, other in zip(folder.read_log(one.output), folder.read_log(two.output), strict=True):
        assert line["n_tokens"] == other["n_tokens"]
        assert line.get("kd", 0) == pytest.approx(other.get("kd", 0), rel=1e-4)


def test_a_killed_process_ends_the_job(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = tiny("gkd", budget={"steps": 100_000}, logging={"every": 1})
    write_config(tmp_path / "recipe.toml", config)
    first, second = launch(tmp_path / "recipe.toml", 2)
    while not folder.read_log(config.output) and first.poll() is None:
        pass
    second.kill()
    second.wait()
    assert first.wait(timeout=60) != 0
