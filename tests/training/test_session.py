"""Several runs of one command: what they share, and what is each one's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from specalign.training import folder
from specalign.training.config import TrainConfig
from specalign.training.session import train_all

Tiny = Callable[..., TrainConfig]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def test_a_study_that_goes_on_keeps_the_data_of_its_first_run(tiny: Tiny, tmp_path: Path) -> None:
    """The teacher's sampled responses are drawn with the first run's seed, be that run complete or not."""
    study = [
        tiny("seqkd", output=tmp_path / f"seed-{seed}", seed=seed, rollout={"teacher_temperature": 1.0})
        for seed in (0, 1)
    ]
    train_all(study)
    before = weights(tmp_path / "seed-1")
    shutil.rmtree(tmp_path / "seed-1")
    train_all(study)
    again = weights(tmp_path / "seed-1")
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_each_run_of_a_command_has_its_own_draft_length(tiny: Tiny, tmp_path: Path) -> None:
    runs = [
        tiny("aligned", output=tmp_path / str(gamma), logging={"probe_gamma": gamma, "probe_prompts": 2})
        for gamma in (1, 3)
    ]
    train_all(runs)
    together = [folder.read_log(run.output)[0] for run in runs]
    for run, found in zip(runs, together, strict=True):
        shutil.rmtree(run.output)
        train_all([run])
        (alone,) = folder.read_log(run.output)
        for name in ("alpha", "tau", "probe_tau"):
            assert found[name] == pytest.approx(alone[name]), (run.logging.probe_gamma, name)
    assert together[0]["tau"] < together[1]["tau"]
