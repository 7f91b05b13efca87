"""The same recipe, seed and machine give the same student bit for bit, in whichever process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specalign.config import write_config
from specalign.files import file_sha256
from specalign.training import folder
from specalign.training.config import TrainConfig

Tiny = Callable[..., TrainConfig]


def trained(config: TrainConfig, place: Path, hash_seed: int) -> tuple[str, list[dict[str, Any]]]:
    """Hash of the weights, and the log without its clock, of a run in a process of its own that nothing is left to."""
    place.mkdir()
    recipe = place / "recipe.toml"
    write_config(recipe, config)
    words = ["-m", "specalign.training", "--recipe", str(recipe), "--output", str(place / "run")]
    alone = {"SPECALIGN_CACHE": str(place / "cache"), "PYTHONHASHSEED": str(hash_seed)}
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env=os.environ | alone)
    log = [
        {key: value for key, value in line.items() if not key.endswith("_s")}
        for line in folder.read_log(place / "run")
    ]
    return file_sha256(place / "run" / "model.safetensors"), log


@pytest.mark.parametrize("method", ["gkd", "distillspec"])
def test_two_processes_train_the_same_student(tiny: Tiny, tmp_path: Path, method: str) -> None:
    """Of the student's sampled texts, and the teacher's; another seed gives another one."""
    config = tiny(method, rollout={"teacher_temperature": 1.0}, logging={"probe_prompts": 2})
    first, again = (trained(config, tmp_path / str(n), n) for n in (1, 2))
    assert first == again
    other = tiny(method, rollout={"teacher_temperature": 1.0}, logging={"probe_prompts": 2}, seed=1)
    assert trained(other, tmp_path / "other", 1)[0] != first[0]
