"""The end of a run: the best weights are written, none are lost on the way, and the last line says what it came to."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specalign.data.trained_on import n_trained_on
from specalign.errors import UserError
from specalign.training import ending, folder, setup
from specalign.training.checkpoints import FOLDER, list_checkpoints
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials
from specalign.training.session import train_all

Tiny = Callable[..., TrainConfig]
BEST = {"keep": "best", "metric": "alpha"}
HARMFUL = {"lr": 0.3, "warmup_steps": 0}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def alphas(run: Path) -> dict[int, float]:
    return {line["step"]: line["alpha"] for line in folder.read_log(run) if line["kind"] == "validation"}


def test_the_best_validated_weights_are_written(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(
        "sft", student={"start": "slice"}, optimiser=HARMFUL, result=BEST, logging={"validate_every": 1}
    )
    train_all([config])
    found = alphas(config.output)
    best = max(found, key=lambda step: found[step])
    assert found[best] > found[4], "this run must get worse at its end"
    assert folder.read_provenance(config.output)["kept_step"] == best
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " trained, " in line]
    assert (
        f"alpha {found[0]:.3f} at the start, best {found[best]:.3f} (step {best}), {found[4]:.3f} at the end"
        in line
    )
    again = tiny("aligned", student={"model": ""}, output=config.output.with_name("again"))
    again = replace(again, method="untrained", student=replace(again.student, model=str(config.output)))
    train_all([again])
    assert alphas(again.output)[0] == pytest.approx(found[best], abs=1e-6)


def test_a_student_tells_the_rows_that_it_and_its_start_were_trained_on(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("sft", output=tmp_path / "first")
    train_all([config])
    materials = load_materials(config)
    assert len({prompt.document for prompt in materials.train}) == len(materials.train)
    assert n_trained_on(config.output, materials.train) == len(materials.train)
    assert n_trained_on(config.output, materials.validation) == 0
    few = replace(config, data=replace(config.data, n_train=2), output=tmp_path / "few")
    train_all([few])
    assert n_trained_on(few.output, materials.train) == 2
    on_top = replace(few, student=replace(few.student, model=str(config.output)), output=tmp_path / "on_top")
    train_all([on_top])
    assert n_trained_on(on_top.output, materials.train) == len(materials.train)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_training_that_does_not_help_is_told(tiny: Tiny, capsys: pytest.CaptureFixture[str], keep: str) -> None:
    """The start is one of the weights that can be the best."""
    start = tiny("aligned")
    train_all([start])
    config = tiny("sft", output=start.output.with_name("worse"), optimiser=HARMFUL, result={"keep": keep})
    train_all([config])
    printed = capsys.readouterr().out
    found = alphas(config.output)
    assert max(found.values()) == found[0], "this run must never be better than its start"
    assert same(weights(config.output), weights(start.output)) == (keep == "best")
    assert folder.read_provenance(config.output)["kept_step"] == (0 if keep == "best" else 4)
    assert f"training did not help: alpha began at {found[0]:.3f} and ended at {found[4]:.3f}" in printed
    written = {
        "best": "the start is what is written",
        "last": "worse weights are written, since result.keep = last",
    }
    assert written[keep] in printed


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ({"alpha": 0.4, "agreement": 0.3}, "training did not help.*agreement rose from 0.200 to 0.300"),
        ({"alpha": 0.4, "agreement": 0.2}, "training did not help.*larger budget$"),
        ({"alpha": 0.6, "agreement": 0.1}, ""),
    ],
)
def test_a_gain_in_greedy_decoding_alone_is_told(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, ends: dict[str, float], told: str
) -> None:
    """Hard labels of the teacher's choice sharpen a drafter: its argmax gets better, its distribution worse."""
    config = tiny("seqkd", result=BEST)
    run = setup.start_run(config, load_materials(config))
    log = [
        {"kind": "validation", "step": 0, "alpha": 0.5, "agreement": 0.2},
        {"kind": "validation", "step": 4, **ends},
    ]
    monkeypatch.setattr(folder, "read_log", lambda _: log)
    found = ending.no_gain(run, ending.course_of(run))
    assert re.match(told, found) if told and found else found is None


def test_training_that_helps_warns_of_nothing(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny("gkd", student={"start": "slice"}, budget={"steps": 40}, optimiser={"lr": 1e-2})
    train_all([config])
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("every", [0, 2, 3])
def test_a_full_disk_at_the_end_loses_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], every: int
) -> None:
    whole, broken = (
        tiny("gkd", output=tmp_path / name, logging={"checkpoint_every": every}, result=BEST) for name in "ab"
    )
    train_all([whole])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_model", full)
        with pytest.raises(
            UserError, match=r"No space left .* safe in \S*step-00000004: make room, and give the same"
        ):
            train_all([broken])
    assert folder.read_provenance(broken.output)["status"] == "running"
    capsys.readouterr()
    train_all([broken])
    assert "[step" not in capsys.readouterr().out  # no step is taken again
    assert same(weights(whole.output), weights(broken.output))
    assert alphas(whole.output) == alphas(broken.output)
    logs = [[(line["kind"], line["step"]) for line in folder.read_log(run.output)] for run in (whole, broken)]
    assert logs[0] == logs[1]
    assert bool(list_checkpoints(broken.output)) == bool(every)
    assert not (broken.output / FOLDER / "best.safetensors").exists()


def test_a_full_disk_at_a_checkpoint_names_the_last_one(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from specalign.training import checkpoints

    config = tiny("sft")
    real = checkpoints.save_file

    def save(tensors: dict, path: Path, *rest: Any) -> None:
        if "state" in Path(path).name and list_checkpoints(config.output):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", save)
        with pytest.raises(
            UserError, match=r"checkpoint of step 4 .*No space left.* last one is \S*step-00000002"
        ):
            train_all([config])
    assert not list((config.output / FOLDER).glob(".*"))
    train_all([config])
    assert folder.read_provenance(config.output)["steps"] == 4


def test_what_a_killed_process_left_is_swept_away(tiny: Tiny) -> None:
    config = tiny("sft")
    for place in (config.output, config.output / FOLDER):
        (place / ".partial-abc").mkdir(parents=True)
        (place / ".partial-abc" / "model.safetensors").write_bytes(b"half")
    (config.output / FOLDER / ".best.safetensors.abc").write_bytes(b"half")
    from specalign.training.checkpoints import sweep

    sweep(config.output)
    assert not [path for path in config.output.rglob("*") if path.is_file()]


@pytest.mark.parametrize("harm", ["weights deleted", "weights changed", "config deleted"])
def test_a_complete_run_is_looked_at_before_it_is_said_to_be(tiny: Tiny, harm: str) -> None:
    config = tiny("sft")
    train_all([config])
    path = config.output / ("config.json" if harm == "config deleted" else "model.safetensors")
    if harm == "weights changed":
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    else:
        path.unlink()
    with pytest.raises(
        UserError, match=r"holds a complete run whose weights are not .*--overwrite trains it again"
    ):
        train_all([config])
    train_all([replace(config, overwrite=True)])
    ending.require_intact(config.output)


def test_the_last_line_has_one_form(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny("sft", result=BEST)
    train_all([config])
    number = r"[01]\.\d{3}"
    pattern = (
        rf"\S+: sft trained, 4 steps, \d+ tokens; alpha {number} at the start, best {number} \(step \d\), {number} at "
        r"the end; written: (the start's|step \d's) weights"
    )
    assert any(re.fullmatch(pattern, line) for line in capsys.readouterr().out.splitlines())
