"""Experiment trackers get what train.jsonl gets; float16 training scales its loss and goes on exactly."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from specalign.errors import UserError
from specalign.files import write_json
from specalign.training import folder, loop, recipe, setup
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials
from specalign.training.session import train_all

Tiny = Callable[..., TrainConfig]


def test_tensorboard_shows_the_lines_of_the_log(tiny: Tiny) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny("gkd", logging={"trackers": ("tensorboard",)})
    train_all([config])
    (path,) = (config.output / "tensorboard" / config.output.name).glob("events.out.tfevents.*")
    shown = events.EventAccumulator(str(path))
    shown.Reload()
    logged = folder.read_log(config.output)
    for kind, key in (("train", "kd"), ("train", "lr"), ("validation", "alpha")):
        scalars = shown.Scalars(f"{kind}/{key}")
        lines = [line for line in logged if line["kind"] == kind]
        assert [event.step for event in scalars] == [line["step"] for line in lines]
        assert [event.value for event in scalars] == pytest.approx([line[key] for line in lines], rel=1e-5)


def test_an_unknown_tracker_lists_the_known_ones(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"unknown logging.trackers entry 'tensorbord'.*tensorboard.*wandb"):
        recipe.check(tiny("gkd", logging={"trackers": ("tensorbord",)}))


def test_a_tracker_whose_package_is_missing_says_how_to_get_it(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"'swanlab' is not installed \(pip install swanlab\)"):
        recipe.check(tiny("gkd", logging={"trackers": ("swanlab",)}))


def test_float16_goes_on_from_a_checkpoint_bit_by_bit(tiny: Tiny, tmp_path: Path) -> None:
    half = {"precision": "float16"}
    whole = tiny("distillspec", output=tmp_path / "whole", optimiser=half)
    train_all([whole])
    again = tiny("distillspec", output=tmp_path / "again", optimiser=half)
    train_all([again])
    assert all(torch.equal(a, b) for a, b in zip(*map(tensors, (whole.output, again.output)), strict=True))
    shutil.rmtree(again.output / "checkpoints" / "step-00000004")
    provenance = folder.read_provenance(again.output)
    write_json(again.output / folder.PROVENANCE, provenance | {"status": "running"})
    (again.output / "model.safetensors").unlink()
    train_all([again])
    assert all(torch.equal(a, b) for a, b in zip(*map(tensors, (whole.output, again.output)), strict=True))


def tensors(run: Path) -> list[torch.Tensor]:
    return list(load_file(run / "model.safetensors").values())


def test_a_step_whose_scaled_loss_overflows_is_left_out(tiny: Tiny) -> None:
    """The weights stay, the scale is halved, and training goes on."""
    config = tiny("distillspec", optimiser={"precision": "float16"})
    run = setup.start_run(config, load_materials(config))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before = [parameter.detach().clone() for parameter in run.parameters]
    report = loop.step(run)
    assert report.grad_norm == float("inf") or report.grad_norm != report.grad_norm
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))
    assert run.scaler.get_scale() == 2.0**99
