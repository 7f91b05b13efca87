"""A teacher that is released before training: the same student, and its memory is really given back."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specalign.errors import UserError
from specalign.models.heads import head_of
from specalign.models.released import is_released
from specalign.training import folder, loop, offload, starts, teacher
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials
from specalign.training.recipe import check, completed
from specalign.training.reuse import TeacherStates
from specalign.training.rows import Row
from specalign.training.session import train_all

Tiny = Callable[..., TrainConfig]
KEPT = {"reuse_states": True, "reuse_on_disk": True}
OFF = {**KEPT, "offload": "after-states"}


@pytest.fixture
def one_file(tmp_path: Path) -> str:
    path = tmp_path / "all.jsonl"
    rows = [{"document": " ".join(f"w{(i * 7 + j) % 60}" for j in range(4 + i % 5))} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("start", ["slice", "aligned"])
def test_the_student_is_the_one_of_a_teacher_that_stays(
    tiny: Tiny, tmp_path: Path, one_file: str, on_disk: bool, start: str
) -> None:
    """Bit by bit, with its validation and its test, from fewer prompts than there are."""
    changes: dict[str, Any] = {
        "objective": {"weights": {"jsd": 1.0}},
        "student": {"start": start, "n_layers": 2, "draft_vocabulary": 20},
        "data": {"source": one_file, "n_train": 9, "n_test": 2},
        "budget": {"steps": 2},
    }
    stay = {"reuse_states": True, "reuse_on_disk": on_disk}
    stays = tiny("seqkd", output=tmp_path / "stays", teacher=stay, **changes)
    leaves = tiny("seqkd", output=tmp_path / "leaves", teacher={**stay, "offload": "after-states"}, **changes)
    train_all([leaves])
    shutil.rmtree(tmp_path / "cache")
    train_all([stays])
    ours, theirs = (load_file(config.output / "model.safetensors") for config in (leaves, stays))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert (leaves.output / folder.HELD_OUT).read_text() == (stays.output / folder.HELD_OUT).read_text()
    for ours_, theirs_ in zip(folder.read_log(leaves.output), folder.read_log(stays.output), strict=True):
        assert ours_.get("alpha") == theirs_.get("alpha")


def test_the_memory_is_given_back(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the student trains no tensor of the teacher is alive but those of its head."""
    config = tiny("seqkd", teacher=OFF, objective={"weights": {"jsd": 1.0}})
    alive: list[weakref.ref[torch.Tensor]] = []
    seen: list[int] = []
    load = teacher.load_model

    def watched(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        head = model.get_output_embeddings().weight
        alive.extend(weakref.ref(each) for each in (*model.parameters(), *model.buffers()) if each is not head)
        return model

    step = loop.step

    def counted(run: Any) -> Any:
        gc.collect()
        seen.append(sum(ref() is not None for ref in alive))
        assert is_released(run.pair.teacher)
        assert not head_of(run.pair.teacher).weight.is_meta
        return step(run)

    monkeypatch.setattr(teacher, "load_model", watched)
    monkeypatch.setattr(loop, "step", counted)
    train_all([config])
    assert len(alive) > 30
    assert seen == [0, 0, 0, 0]


def test_a_command_that_finds_all_on_disk_loads_no_teacher(
    tiny: Tiny, tmp_path: Path, one_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that goes on; where one row's states are gone, the teacher is loaded for that row alone."""
    small = tmp_path / "small"
    train_all([tiny("aligned", output=small)])
    changes = {
        "teacher": OFF,
        "student": {"model": str(small)},
        "objective": {"weights": {"jsd": 1.0}},
        "data": {"source": one_file, "n_test": 2},
    }
    first, second, third = (tiny("seqkd", output=tmp_path / name, **changes) for name in "abc")
    train_all([first])
    names: list[str] = []
    load = starts.load_model

    def named(name: str, **options: Any) -> Any:
        names.append(name)
        return load(name, **options)

    scored: list[int] = []
    score = TeacherStates._score

    def counted(self: TeacherStates, rows: Any, *args: Any) -> Any:
        scored.append(len(rows))
        return score(self, rows, *args)

    for module in (starts, teacher):
        monkeypatch.setattr(module, "load_model", named)
    monkeypatch.setattr(TeacherStates, "_score", counted)
    train_all([second])
    assert names == [str(small)]
    ours, theirs = (load_file(config.output / "model.safetensors") for config in (second, first))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    next((tmp_path / "cache" / "states").glob("*/*.safetensors")).unlink()
    train_all([third])
    assert sorted(names[1:]) == sorted([third.teacher.model, str(small)])
    assert scored == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"offload": "after-states"}}, "teacher.reuse_states keeps: set that too"),
        (
            {"teacher": OFF, "rollout": {"source": "mixed"}},
            r"rollout.source = mixed\): set rollout.source = teacher",
        ),
        ({"teacher": OFF, "logging": {"probe_prompts": 1}}, "set logging.probe_prompts = 0"),
    ],
)
def test_what_needs_the_teacher_is_refused_before_anything_is_loaded(
    tiny: Tiny, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check(completed(tiny("seqkd", **changes)))


def test_without_room_for_all_states_it_is_not_begun(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("seqkd", teacher={**OFF, "reuse_gib": 1e-6}, objective={"weights": {"jsd": 1.0}})
    monkeypatch.setattr(TeacherStates, "_score", lambda *_: pytest.fail("the teacher ran"))
    with pytest.raises(UserError, match=r"keeps the states of every token, .* to that, not 1e-06"):
        train_all([config])


def test_a_state_that_is_gone_later_is_said_to_be(tiny: Tiny) -> None:
    config = completed(tiny("seqkd", teacher=OFF, objective={"weights": {"jsd": 1.0}}))
    found = load_materials(config)
    offload.score_and_release(found, [config])
    rows = offload.needed_rows(found, [config])
    assert len(found.teacher_states.of(rows, packed=True)) == sum(row.n_tokens for row in rows)
    next(found.teacher_states.folder.glob("*")).unlink()  # type: ignore[union-attr]
    with pytest.raises(UserError, match="give the same command again"):
        found.teacher_states.of(rows, packed=True)


@pytest.mark.parametrize(
    ("budget", "n_met"),
    [({"steps": 2}, 8), ({"steps": 0, "tokens": 9}, 4), ({"steps": 0, "tokens": 13}, 8), ({"steps": 90}, 12)],
)
def test_only_what_training_comes_to_is_scored(tiny: Tiny, budget: dict[str, int], n_met: int) -> None:
    """Steps of four prompts of three tokens each; what the loop then asks for is among it."""
    config = completed(tiny("seqkd", budget=budget, objective={"weights": {"jsd": 1.0}}))
    found = load_materials(config)
    rows = {prompt.id: Row((4, 5, 6, 7), 1) for prompt in found.train}
    assert len(found.train) == 12
    chosen = offload.met(config, found.train, rows)
    assert len(chosen) == n_met
    assert chosen[:4] == loop.next_prompts(found.train, 0, 4, config.seed)
