"""The teacher's states along fixed responses: computed once, the same wherever they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specalign.training import checkpoints, folder, loop, optimiser, setup, starts
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials
from specalign.training.reuse import Scored, TeacherStates
from specalign.training.rows import Branch, Row, lay_out
from specalign.training.scoring import observed, states
from specalign.training.session import train_all

Tiny = Callable[..., TrainConfig]
FIXED = [Row((5, 6, 7, 20, 21), 3), Row((8, 9, 10, 11, 12, 13), 2), Row((30, 31, 32), 2)]
ROOM = 2**20
ROLLED = [Row((3, 4, 5, 6), 2, (Branch(2, (13, 14)), Branch(3, (15,))), (), True)]


@pytest.mark.parametrize("packed", [True, False])
def test_states_are_those_of_the_layout(tiny: Tiny, packed: bool) -> None:
    teacher = load_materials(tiny()).teacher.double()
    rows = [FIXED[0], *ROLLED, *FIXED[1:]]
    expected = states(teacher, lay_out(rows, packed=packed))
    kept = TeacherStates(teacher, ROOM)
    for _ in range(2):
        torch.testing.assert_close(kept.of(rows, packed=packed), expected, rtol=1e-10, atol=1e-10)
    assert {row for row, _ in kept.kept} == set(FIXED)  # rollouts are never met again


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_a_head_reads_is_kept_beside(tiny: Tiny, tmp_path: Path, on_disk: bool) -> None:
    """Exactly what one pass over the rows together gives, and apart from what other students need."""
    teacher, reads = load_materials(tiny()).teacher.double(), (0, 2, 4)
    layout = lay_out(FIXED, packed=True)
    expected, final = observed(teacher, layout, reads)
    kept = TeacherStates(teacher, ROOM, tmp_path / "states" if on_disk else None)
    for _ in range(2):
        found, states_ = kept.observed(FIXED, layout, packed=True, reads=reads)
        torch.testing.assert_close(states_, final, rtol=1e-10, atol=1e-10)
        assert expected.read is not None
        assert found.read is not None
        assert found.read.shape == (3, 5, 3 * 16)
        for ours, theirs, row in zip(found.read, expected.read, FIXED, strict=True):
            torch.testing.assert_close(ours[: len(row.trunk) - 1], theirs[: len(row.trunk) - 1])
    held = 8 * 16 * sum(row.n_tokens + 3 * (len(row.trunk) - 1) for row in FIXED)
    assert kept.n_bytes == held
    kept.of(FIXED, packed=True)
    assert kept.n_bytes == held + 8 * 16 * sum(row.n_tokens for row in FIXED)


def test_a_fixed_response_is_scored_once_and_alike_in_every_batch(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = TeacherStates(load_materials(tiny()).teacher, ROOM)
    first = kept.of(FIXED, packed=True)
    monkeypatch.setattr(kept.teacher, "get_decoder", lambda: pytest.fail("the teacher ran again"))
    assert torch.equal(kept.of(FIXED[::-1], packed=True), torch.cat(first.split([2, 4, 1])[::-1]))


@pytest.mark.parametrize(("together", "passes"), [(True, 1), (False, 3)])
def test_on_a_gpu_the_unknown_rows_of_a_batch_share_a_pass(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, together: bool, passes: int
) -> None:
    """In the first epoch each pass over one row alone would leave most of the device idle."""
    kept = TeacherStates(load_materials(tiny()).teacher.double(), ROOM)
    assert not kept.together  # the CPU's runs repeat bit by bit
    kept.together = together
    calls: list[int] = []
    score = TeacherStates._score

    def counted(self: TeacherStates, rows: Sequence[Row], *args: Any) -> list[Scored]:
        calls.append(len(rows))
        return score(self, rows, *args)

    monkeypatch.setattr(TeacherStates, "_score", counted)
    found = kept.of([*FIXED, FIXED[0]], packed=True)
    expected = states(kept.teacher, lay_out([*FIXED, FIXED[0]], packed=True))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert len(calls) == passes
    kept.of(FIXED, packed=True)
    assert len(calls) == passes


def test_training_with_kept_states_is_training(tiny: Tiny, tmp_path: Path) -> None:
    plain, reusing = (
        tiny(
            "seqkd",
            output=tmp_path / str(reuse),
            teacher={"reuse_states": reuse},
            objective={"weights": {"jsd": 1.0}},
        )
        for reuse in (False, True)
    )
    train_all([plain])
    train_all([reusing])
    ours, theirs = (load_file(config.output / "model.safetensors") for config in (reusing, plain))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_with_kept_states_repeats_the_uninterrupted_one(tiny: Tiny, tmp_path: Path) -> None:
    changes = {"teacher": {"reuse_states": True}, "objective": {"weights": {"tvd": 1.0}}}
    whole, parts = (tiny("seqkd", output=tmp_path / name, **changes) for name in ("whole", "parts"))
    train_all([whole])
    run = setup.start_run(parts, load_materials(parts))
    folder.claim(parts, {})
    for _ in range(2):
        loop.step(run)
    state = optimiser.gathered_state(run.optimiser)
    checkpoints.save_checkpoint(parts.output, run.pair.student, state, run.generator, run.position, keep=1)
    train_all([parts])
    ours, theirs = (load_file(config.output / "model.safetensors") for config in (parts, whole))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_states_on_disk_serve_a_later_command_bit_by_bit(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_materials(tiny()).teacher
    first = TeacherStates(teacher, ROOM, tmp_path / "states").of(FIXED, packed=True)
    files = sorted((tmp_path / "states").iterdir())
    assert len(files) == len(FIXED)
    assert not TeacherStates(teacher, ROOM, tmp_path / "states").kept  # main memory is not used
    files[0].write_bytes(files[0].read_bytes()[:-1])  # damaged: computed again
    assert torch.equal(TeacherStates(teacher, ROOM, tmp_path / "states").of(FIXED, packed=True), first)
    monkeypatch.setattr(teacher, "get_decoder", lambda: pytest.fail("the teacher ran again"))
    assert torch.equal(TeacherStates(teacher, ROOM, tmp_path / "states").of(FIXED, packed=True), first)


@pytest.mark.parametrize("on_disk", [False, True])
def test_losses_do_not_depend_on_what_is_kept(tiny: Tiny, tmp_path: Path, on_disk: bool) -> None:
    teacher = load_materials(tiny()).teacher
    folder = tmp_path / "states" if on_disk else None
    n_bytes = 16 * 4 * (FIXED[0].n_tokens + FIXED[1].n_tokens)
    everything, nothing = TeacherStates(teacher, ROOM, folder), TeacherStates(teacher, 0)
    bounded = TeacherStates(teacher, n_bytes)
    for _ in range(2):
        expected = nothing.of(FIXED, packed=True)
        assert torch.equal(everything.of(FIXED, packed=True), expected)
        assert torch.equal(bounded.of(FIXED, packed=True), expected)
    assert not nothing.kept
    assert {row for row, _ in bounded.kept} == set(FIXED[:2])
    assert bounded.n_bytes == n_bytes


def test_a_second_command_trains_the_same_student_without_the_teacher(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "teacher": {"reuse_states": True, "reuse_on_disk": True},
        "objective": {"weights": {"jsd": 1.0}},
    }
    cold, warm = (tiny("seqkd", output=tmp_path / name, budget={"steps": 8}, **changes) for name in ("a", "b"))
    train_all([cold])
    monkeypatch.setattr(TeacherStates, "_score", lambda *_: pytest.fail("the teacher ran again"))
    train_all([warm])
    ours, theirs = (load_file(config.output / "model.safetensors") for config in (cold, warm))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_the_recipe_says_how_much_is_kept(tiny: Tiny) -> None:
    config = tiny("seqkd", teacher={"reuse_states": True, "reuse_gib": 0.5})
    kept = setup.start_run(config, load_materials(config)).teacher_states
    assert kept is not None
    assert (kept.capacity, kept.folder) == (2**29, None)


def test_an_alignment_is_fitted_once_for_all_commands(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("aligned")
    first = load_materials(config).student(config.student)
    monkeypatch.setattr(starts, "align_slice", lambda *_a, **_k: pytest.fail("fitted again"))
    again = load_materials(config).student(config.student)
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("change", [{"ridge": 0.1}, {"align_tokens": 30}, {"n_layers": 3}])
def test_another_fit_is_another_start(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    config = tiny("aligned")
    load_materials(config).student(config.student)
    with monkeypatch.context() as patched:
        patched.setattr(starts, "align_slice", lambda *_a, **_k: pytest.fail("fitted again"))
        other = tiny("aligned", student=change)
        with pytest.raises(pytest.fail.Exception, match="fitted again"):
            load_materials(other).student(other.student)
