"""A run is made of its data and models too: it never goes on, and is never called complete, over others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from specalign.errors import UserError
from specalign.training import loop
from specalign.training.config import TrainConfig
from specalign.training.session import train_all

Tiny = Callable[..., TrainConfig]
Change = Callable[[Path], None]


def fewer_rows(folder: Path) -> None:
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:5]))


def other_references(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    (folder / "train.jsonl").write_text("".join(json.dumps(row | {"reference": "w55"}) + "\n" for row in rows))


def other_validation(folder: Path) -> None:
    (folder / "validation.jsonl").write_text('{"document": "w3 w4", "reference": "w5"}\n')


def other_teacher(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.add_(0.1)
    model.save_pretrained(folder)


CHANGES = {
    "fewer rows": (fewer_rows, "data", r"training rows of .* changed \(12, \w{12}, now 5, \w{12}\)"),
    "other references": (
        other_references,
        "data",
        r"training rows of .* changed \(12, \w{12}, now 12, \w{12}\)",
    ),
    "other validation": (other_validation, "data", r"validation rows of .* changed"),
    "other teacher": (other_teacher, "teacher", r"teacher of .* changed \(\w{12}, now \w{12}\)"),
    "other student": (other_teacher, "student", r"student of .* changed"),
}


@pytest.fixture
def made(tiny: Tiny, tmp_path: Path, teacher_folder: Path, data_folder: Path) -> TrainConfig:
    """A run over copies of everything that it is made of."""
    for name, source in (("data", data_folder), ("teacher", teacher_folder), ("student", teacher_folder)):
        shutil.copytree(source, tmp_path / name)
    return tiny(
        "sft",
        teacher={"model": str(tmp_path / "teacher")},
        student={"model": str(tmp_path / "student")},
        data={"source": str(tmp_path / "data")},
    )


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("complete", [True, False], ids=["complete", "interrupted"])
def test_a_change_is_refused(
    made: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, complete: bool
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if complete:
        train_all([made])
    else:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "finish", interrupt)
            with pytest.raises(KeyboardInterrupt):
                train_all([made])
    change, what, message = CHANGES[name]
    change(tmp_path / what)
    with pytest.raises(UserError, match=rf"the {message}.*: restore what it was, or choose another --output"):
        train_all([made])


def test_a_complete_run_outlives_its_data(
    made: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_all([made])
    train_all([made])
    assert "complete already, nothing to do (--overwrite trains it again)\n" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "data")
    train_all([made])
    assert (
        "complete already, nothing to do (--overwrite trains it again); what it was" in capsys.readouterr().out
    )
