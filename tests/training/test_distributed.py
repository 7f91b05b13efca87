"""Two processes do what one does with the same prompts, and leave one student."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import AdamW

from specalign.config import write_config
from specalign.results import write_json
from specalign.training import folder, optimiser
from specalign.training.checkpoints import list_checkpoints
from specalign.training.config import OptimiserConfig, TrainConfig
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


def torchrun(config: TrainConfig, recipe: Path) -> None:
    """Train with two processes of torch's own launcher."""
    write_config(recipe, config)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [
        *launcher,
        "--master-port",
        str(free_port()),
        "-m",
        "specalign.training",
        "--recipe",
        str(recipe),
    ]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)


def assert_same_run(one: TrainConfig, two: TrainConfig) -> None:
    ours, theirs = load_file(one.output / "model.safetensors"), load_file(two.output / "model.safetensors")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    for line, other in zip(folder.read_log(one.output), folder.read_log(two.output), strict=True):
        assert line["n_tokens"] == other["n_tokens"]
        assert line.get("kd", 0) == pytest.approx(other.get("kd", 0), rel=1e-4)


@pytest.mark.parametrize(
    ("vocabulary", "sharded"), [(0, True), pytest.param(20, False, marks=pytest.mark.slow)]
)
def test_two_processes_equal_one(
    tiny: Callable[..., TrainConfig], tmp_path: Path, vocabulary: int, sharded: bool
) -> None:
    student = {"draft_vocabulary": vocabulary}
    one = tiny("sft", output=tmp_path / "one", optimiser={"batch": 2, "accumulation": 2}, student=student)
    halves = {"batch": 1, "accumulation": 2, "sharded": sharded}
    two = tiny("sft", output=tmp_path / "two", optimiser=halves, student=student)
    train_all([one])
    torchrun(two, tmp_path / "two.toml")
    assert_same_run(one, two)


def rewind(config: TrainConfig) -> None:
    """Leave the run as a crash after its last checkpoint but one would have."""
    *_, last = list_checkpoints(config.output)
    shutil.rmtree(last)
    write_json(config.output / folder.PROVENANCE, folder.read_provenance(config.output) | {"status": "running"})
    (config.output / "model.safetensors").unlink()


def test_the_optimiser_is_sharded_if_asked_for_among_several(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A group of one process, told that it is one of two."""
    model = torch.nn.Linear(2, 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for others, sharded, kind in ((2, True, ZeroRedundancyOptimizer), (2, False, AdamW), (1, True, AdamW)):
            monkeypatch.setattr(optimiser, "world_size", lambda others=others: others)
            assert type(optimiser.adamw(model, OptimiserConfig(sharded=sharded))) is kind
    finally:
        torch.distributed.destroy_process_group()


def test_a_sharded_optimisers_checkpoint_is_whole(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Two processes go on from it exactly, and one alone can."""
    log = {"checkpoint_every": 2, "every": 1}
    one = tiny("sft", output=tmp_path / "one", optimiser={"batch": 2, "accumulation": 2}, logging=log)
    halves = {"batch": 1, "accumulation": 2, "sharded": True}
    two = tiny("sft", output=tmp_path / "two", optimiser=halves, logging=log)
    train_all([one])
    torchrun(two, tmp_path / "two.toml")
    ours, theirs = (load_file(list_checkpoints(run.output)[-1] / "state.safetensors") for run in (one, two))
    moments = [name for name in ours if name.startswith("optimiser.")]
    assert moments
    for name in moments:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-6)
    whole = load_file(two.output / "model.safetensors")
    rewind(two)
    torchrun(two, tmp_path / "two.toml")
    resumed = load_file(two.output / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    rewind(two)
    train_all([two])
    assert folder.read_provenance(two.output)["status"] == "complete"


def test_a_killed_process_ends_the_job(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = tiny("gkd", budget={"steps": 100_000}, logging={"every": 1})
    write_config(tmp_path / "recipe.toml", config)
    first, second = launch(tmp_path / "recipe.toml", 2)
    while not folder.read_log(config.output) and first.poll() is None:
        pass
    second.kill()
    second.wait()
    assert first.wait(timeout=60) != 0
