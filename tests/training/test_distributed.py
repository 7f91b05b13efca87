"""Two processes do what one does with the same prompts, and leave one student."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import AdamW
from transformers import T5Config, T5ForConditionalGeneration

from specalign.config import write_config
from specalign.errors import UserError
from specalign.files import write_json
from specalign.training import distributed, folder, optimiser, setup, sharding
from specalign.training.checkpoints import list_checkpoints
from specalign.training.config import OptimiserConfig, TrainConfig
from specalign.training.materials import load_materials
from specalign.training.session import train_all
from specalign.training.sharding import is_sharded, whole

NEEDS_NEW_TORCH = pytest.mark.skipif(
    not hasattr(FSDPModule, "reset_iter_state"), reason="weights are divided with torch 2.13 or later"
)


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
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)


def assert_same_run(one: TrainConfig, two: TrainConfig) -> None:
    ours, theirs = load_file(one.output / "model.safetensors"), load_file(two.output / "model.safetensors")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    for line, other in zip(folder.read_log(one.output), folder.read_log(two.output), strict=True):
        assert line["n_tokens"] == other["n_tokens"]
        assert line.get("kd", 0) == pytest.approx(other.get("kd", 0), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("vocabulary", "sharded"),
    [
        (0, "moments"),
        pytest.param(0, "weights", marks=NEEDS_NEW_TORCH),
        pytest.param(20, "none", marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one(
    tiny: Callable[..., TrainConfig], tmp_path: Path, vocabulary: int, sharded: str
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


@pytest.fixture
def lone_group(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("device", "gpus", "backend", "set_to"),
    [
        ("auto", True, "nccl", [1]),
        ("cuda", True, "nccl", [1]),
        ("cpu", True, "gloo", []),
        ("auto", False, "gloo", []),
    ],
)
def test_the_group_is_of_the_recipes_device_and_waits_for_hours(
    device: str, gpus: bool, backend: str, set_to: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 writes the teacher's responses alone: torch's limits of 10 and 30 minutes would end the job."""
    chosen: list[int] = []
    groups: list[tuple[str, float]] = []
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda kind, timeout: groups.append((kind, timeout.total_seconds())),
    )
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with distributed.process_group(device):
        assert groups[0][0] == backend
        assert groups[0][1] >= 24 * 3600
    assert chosen == set_to


def test_one_gpu_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="launch with device = cuda"), distributed.process_group("cuda:1"):
        pass


@pytest.mark.usefixtures("lone_group")
def test_the_optimiser_is_sharded_if_asked_for_among_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of one process, told that it is one of two."""
    model = torch.nn.Linear(2, 2)
    for others, config, kind in (
        (2, OptimiserConfig(sharded="moments"), ZeroRedundancyOptimizer),
        (2, OptimiserConfig(), AdamW),
        (1, OptimiserConfig(sharded="moments"), AdamW),
    ):
        monkeypatch.setattr(optimiser, "world_size", lambda others=others: others)
        assert type(optimiser.adamw(model, config)) is kind


def test_an_older_torch_is_told_what_it_can_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "world_size", lambda: 2)
    monkeypatch.delattr(FSDPModule, "reset_iter_state", raising=False)
    sharding.require_divisible("moments")
    with pytest.raises(UserError, match=r"needs torch 2\.13, .* optimiser.sharded = moments does without"):
        sharding.require_divisible("weights")


@pytest.mark.usefixtures("lone_group")
def test_the_layers_are_divided_if_asked_for_among_several(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group of one process, told that it is one of two: its layers are divided, by one."""
    for others, sharded in ((2, "weights"), (2, "moments"), (1, "weights")):
        monkeypatch.setattr(distributed, "world_size", lambda others=others: others)
        config = tiny("sft", optimiser={"sharded": sharded})
        student = setup.start_run(config, load_materials(config)).pair.student
        divided = {name for name, parameter in student.named_parameters() if is_sharded(parameter)}
        wanted = {name for name, _ in student.named_parameters() if "layers." in name}
        assert divided == (wanted if (others, sharded) == (2, "weights") else set())
        with whole(student):
            assert not any(map(is_sharded, student.parameters()))


@pytest.mark.parametrize("sharded", ["moments", pytest.param("weights", marks=NEEDS_NEW_TORCH)])
def test_a_sharded_runs_checkpoint_is_whole(
    tiny: Callable[..., TrainConfig], tmp_path: Path, sharded: str
) -> None:
    """Two processes go on from it exactly, and one alone can."""
    log = {"checkpoint_every": 2, "every": 1}
    one = tiny("sft", output=tmp_path / "one", optimiser={"batch": 2, "accumulation": 2}, logging=log)
    halves = {"batch": 1, "accumulation": 2, "sharded": sharded}
    two = tiny("sft", output=tmp_path / "two", optimiser=halves, logging=log)
    train_all([one])
    torchrun(two, tmp_path / "two.toml")
    ours, theirs = (load_file(list_checkpoints(run.output)[-1] / "state.safetensors") for run in (one, two))
    moments = [name for name in ours if name.startswith("optimiser.")]
    assert "optimiser.model.layers.0.mlp.up_proj.weight.exp_avg" in moments
    assert ours.keys() == theirs.keys()
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


@NEEDS_NEW_TORCH
@pytest.mark.parametrize(
    "checkpointing",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["plain", "gradient checkpointing"],
)
def test_divided_layers_change_nothing_on_policy(
    tiny: Callable[..., TrainConfig], tmp_path: Path, checkpointing: bool
) -> None:
    """Rollouts of other lengths on each process, real decoding and the best weights on rank 0 alone."""
    log = {"every": 1, "validate_every": 1, "probe_prompts": 2, "checkpoint_every": 2}
    whole, divided = (
        tiny(
            "distillspec",
            output=tmp_path / sharded,
            optimiser={"batch": 2, "gradient_checkpointing": checkpointing, "sharded": sharded},
            logging=log,
            result={"keep": "best"},
        )
        for sharded in ("none", "weights")
    )
    for config in (whole, divided):
        torchrun(config, tmp_path / "recipe.toml")
    assert_same_run(whole, divided)


@NEEDS_NEW_TORCH
@pytest.mark.slow
def test_both_towers_are_divided(
    tiny: Callable[..., TrainConfig], teacher_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "t5"
    shutil.copytree(teacher_folder, folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
    }
    ids: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(**sizes, **ids, dropout_rate=0.0)).save_pretrained(folder)
    whole, divided = (
        tiny(
            "distillspec",
            output=tmp_path / sharded,
            teacher={"model": str(folder)},
            optimiser={"sharded": sharded},
        )
        for sharded in ("none", "weights")
    )
    for config in (whole, divided):
        torchrun(config, tmp_path / "recipe.toml")
    assert_same_run(whole, divided)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP plugin is not used here.*moments, weights"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed plugin is not used here"),
        (
            "ACCELERATE_MIXED_PRECISION",
            "fp16",
            "mixed precision fp16 is not used here: set optimiser.precision",
        ),
    ],
)
def test_what_only_accelerate_was_told_is_not_ignored(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=told):
        train_all([tiny("sft")])


def test_accelerate_may_ask_for_what_the_recipe_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, precision in (("no", "auto"), ("bf16", "auto"), ("bf16", "bfloat16"), ("fp16", "float16")):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        distributed.refuse_plugins(precision)


def test_a_killed_process_ends_the_job(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = tiny("gkd", budget={"steps": 100_000}, logging={"every": 1})
    write_config(tmp_path / "recipe.toml", config)
    first, second = launch(tmp_path / "recipe.toml", 2)
    while not folder.read_log(config.output) and first.poll() is None:
        pass
    second.kill()
    second.wait()
    assert first.wait(timeout=60) != 0
