"""Runs that train a head: what a recipe says, what is refused, and the folder that is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specalign.errors import UserError
from specalign.losses import LOSSES
from specalign.models.eagle import EagleHead, load_head
from specalign.models.head_fit import origin_of, other_weights
from specalign.models.load import load_model
from specalign.training import checkpoints, folder, loop, optimiser, recipe, setup, starts
from specalign.training.cli import configs
from specalign.training.config import RolloutConfig, TrainConfig
from specalign.training.materials import load_materials
from specalign.training.plan import make_plan
from specalign.training.preflight import findings
from specalign.training.session import train_all
from specalign.training.student_config import StudentConfig
from specalign.training.validation import make_validation

Tiny = Callable[..., TrainConfig]
HEAD: dict[str, Any] = {"kind": "head", "start": "random"}


def a_head(tiny: Tiny, method: str = "distillspec", **changes: Any) -> TrainConfig:
    return tiny(method, **{**changes, "student": {**HEAD, **changes.get("student", {})}})


@pytest.mark.parametrize("method", ["sft", "seqkd", "gkd", "distillspec", "contrastive"])
def test_every_method_is_one_for_heads(tiny: Tiny, method: str) -> None:
    """On responses by the teacher where it would have the student write, with its own objective."""
    ours, its = (recipe.completed(config) for config in (a_head(tiny, method), tiny(method)))
    recipe.check(ours)
    assert ours.rollout.source == ("ground_truth" if method == "sft" else "teacher")
    assert ours.objective == its.objective


@pytest.mark.parametrize("method", ["sft", "seqkd", "gkd", "distillspec", "contrastive"])
def test_a_heads_own_words_are_drafts(method: str) -> None:
    """Whichever method, once they are asked for: by a flag, a sweep or in Python."""
    words = ["--method", method, "--student.kind", "head"]
    (flag,) = configs([*words, "--rollout.source", "mixed"])
    given, swept = configs([*words, "--sweep", "rollout.source=teacher,mixed"])
    said = TrainConfig(student=StudentConfig(kind="head"), rollout=RolloutConfig(source="mixed"))
    for config in (flag, swept, recipe.resolve(said, None, method)):
        recipe.check(config)
        assert (config.rollout.source, config.rollout.style) == ("mixed", "branches")
    assert given.rollout.source == "teacher"


@pytest.mark.parametrize("method", ["sft", "distillspec"])
def test_a_method_trains_a_head(tiny: Tiny, method: str) -> None:
    config = a_head(tiny, method, student={"draft_vocabulary": 20}, budget={"steps": 2})
    train_all([config])
    lines = folder.read_log(config.output)
    assert [line["kind"] for line in lines] == ["validation", "train", "train", "validation"]
    assert all(line["tau"] > 0 for line in lines if line["kind"] == "validation")
    made = load_head(str(config.output))
    assert (made.config.reads, made.lm_head.out_features) == ((2, 3, 4), 20)
    assert not (config.output / "draft_vocabulary").exists()


def test_training_a_head_brings_it_nearer_to_its_teacher(tiny: Tiny) -> None:
    config = a_head(tiny, budget={"steps": 60}, optimiser={"lr": 1e-2}, logging={"validate_every": 0})
    train_all([config])
    first, last = (line for line in folder.read_log(config.output) if line["kind"] == "validation")
    assert last["alpha"] > first["alpha"] + 0.1
    assert last["tau"] > first["tau"]


def test_every_objective_trains_a_head(tiny: Tiny) -> None:
    materials = load_materials(a_head(tiny))
    shared = cache(partial(make_validation, materials, "validation"))
    embedding = dict(materials.teacher.named_parameters())["model.embed_tokens.weight"]
    for name in LOSSES:
        run = setup.start_run(a_head(tiny, objective={"weights": {name: 1.0}}), materials, shared)
        head = run.pair.student
        assert isinstance(head, EagleHead)
        before = head.fc.weight.clone()
        assert loop.step(run).grad_norm > 0
        assert not torch.equal(head.fc.weight, before)
        assert torch.equal(head.embed_tokens.weight, embedding)


def test_a_head_is_fitted_once_for_all_commands(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe.completed(a_head(tiny, "aligned", student={"start": "aligned", "draft_vocabulary": 20}))
    first = load_materials(config).student(config.student)
    drawn = recipe.completed(a_head(tiny, "untrained", student={"draft_vocabulary": 20}))
    other = load_materials(drawn).student(drawn.student)
    changed = {
        name for name, weight in first.named_parameters() if not torch.equal(weight, other.get_parameter(name))
    }
    assert changed == {
        "fc.weight",
        "layers.0.post_attention_layernorm.weight",
        *(f"layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
        *(f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }
    monkeypatch.setattr(starts, "fit_head", lambda *_a, **_k: pytest.fail("fitted again"))
    again = load_materials(config).student(config.student)
    assert all(torch.equal(weight, again.get_parameter(name)) for name, weight in first.named_parameters())


def test_what_is_expected_of_a_head_is_what_decoding_finds(tiny: Tiny) -> None:
    """The probe drafts with the engine; teacher-forced alpha of its steps must be near what it meets."""
    config = a_head(
        tiny, budget={"steps": 40}, optimiser={"lr": 1e-2}, logging={"probe_prompts": 4, "validate_every": 0}
    )
    train_all([config])
    last = folder.read_log(config.output)[-1]
    assert last["probe_alpha"] == pytest.approx(last["alpha"], abs=0.1 + 3 * last["probe_alpha_se"])


def test_the_folder_names_the_teacher_and_the_draft_length(tiny: Tiny) -> None:
    config = a_head(tiny, logging={"probe_gamma": 3}, data={"n_test": 2, "source": str(_one_file(tiny))})
    train_all([config])
    written = json.loads((config.output / "config.json").read_text())
    assert written["speculators_config"]["verifier"]["name_or_path"] == config.teacher.model
    assert written["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 3
    held_out = [json.loads(line) for line in (config.output / "held_out.jsonl").read_text().splitlines()]
    assert len(held_out) == 2
    assert all(0 <= line["alpha"] <= 1 <= line["tau"] for line in held_out)


def test_the_folder_tells_its_target_by_layers_and_logits(tiny: Tiny) -> None:
    config = a_head(tiny, "untrained")
    train_all([config])
    teacher = load_model(config.teacher.model)
    told = origin_of(str(config.output))
    assert told is not None
    assert told.n_layers == 4
    assert told.dtype == "torch.float32"
    assert not other_weights(told, teacher)
    with torch.no_grad():
        teacher.get_output_embeddings().weight.mul_(1.1)
    assert other_weights(told, teacher)
    assert not other_weights(None, teacher)


def _one_file(tiny: Tiny) -> Path:
    source = Path(tiny().data.source)
    path = tiny().output.parent / "all.jsonl"
    path.write_text("".join((source / f"{split}.jsonl").read_text() for split in ("train", "validation")))
    return path


def test_an_interrupted_run_repeats_the_uninterrupted_one(tiny: Tiny, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"teacher": {"reuse_states": True}, "student": {"draft_vocabulary": 20}}
    whole, parts = (a_head(tiny, output=tmp_path / name, **changes) for name in ("whole", "parts"))
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
    kept = load_file(next((parts.output / "checkpoints").glob("step-*")) / "model.safetensors")
    assert "embed_tokens.weight" not in kept  # the teacher has it


def test_kept_states_train_the_same_head(tiny: Tiny, tmp_path: Path) -> None:
    plain, reusing = (
        a_head(tiny, output=tmp_path / str(reuse), teacher={"reuse_states": reuse}) for reuse in (False, True)
    )
    train_all([plain])
    train_all([reusing])
    ours, theirs = (load_file(config.output / "model.safetensors") for config in (reusing, plain))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_no_number_of_a_head(tiny: Tiny, tmp_path: Path) -> None:
    """Three steps, whose keys and values later ones attend to."""
    for name, on in (("plain", False), ("checkpointed", True)):
        optimiser = {"gradient_checkpointing": on, "lr": 1e-2}
        train_all([a_head(tiny, output=tmp_path / name, student={"unroll": 3}, optimiser=optimiser)])
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "checkpointed"))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-5, atol=1e-6)


def test_a_trained_head_is_trained_on(tiny: Tiny, tmp_path: Path) -> None:
    first = a_head(tiny, output=tmp_path / "first", student={"draft_vocabulary": 20})
    train_all([first])
    second = a_head(tiny, output=tmp_path / "second", student={"model": str(first.output)})
    train_all([second])
    lines = [folder.read_log(config.output) for config in (first, second)]
    assert lines[1][0]["alpha"] == pytest.approx(lines[0][-1]["alpha"])
    one, two = (load_head(str(config.output)) for config in (first, second))
    assert torch.equal(one.draft_ids, two.draft_ids)
    assert not torch.equal(one.fc.weight, two.fc.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reads": (0, 1, 2)}, r"reads the states of layers \[2, 3, 4\], not student.reads = \[0, 1, 2\]"),
        ({"draft_vocabulary": 30}, "drafts 20 ids, not student.draft_vocabulary = 30"),
    ],
)
def test_a_trained_head_keeps_its_layers_and_ids(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    first = a_head(tiny, "untrained", output=tmp_path / "first", student={"draft_vocabulary": 20})
    train_all([first])
    second = a_head(tiny, output=tmp_path / "second", student={"model": str(first.output), **changes})
    found = {finding.check: finding for finding in findings([recipe.completed(second)], data=False)}
    assert found["student"].verdict == "failed"
    with pytest.raises(UserError, match=message):
        train_all([second])


def test_a_head_for_another_depth_is_not_trained_on(tiny: Tiny, tmp_path: Path) -> None:
    first = a_head(tiny, "untrained", output=tmp_path / "first")
    train_all([first])
    facts = json.loads((first.output / "provenance.json").read_text())
    facts["target"]["n_layers"] = 6
    (first.output / "provenance.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="trained for a target of 6 layers, this one has 4"):
        train_all([a_head(tiny, output=tmp_path / "second", student={"model": str(first.output)})])


def test_a_comparison_mixes_kinds(tiny: Tiny, tmp_path: Path) -> None:
    head = a_head(tiny, "seqkd", output=tmp_path / "head")
    train_all([head, tiny("seqkd", output=tmp_path / "slice")])
    found = [folder.read_log(tmp_path / name)[-1] for name in ("head", "slice")]
    assert found[0]["n_positions"] == found[1]["n_positions"]


def test_prompts_are_trained_on_where_asked_for(tiny: Tiny) -> None:
    config = a_head(tiny, rollout={"prompts": True}, optimiser={"accumulation": 1})
    run = setup.start_run(config, load_materials(config))
    rows = run.policy.rows(run.prompts[:2], loop.writer(run), torch.Generator())
    assert [row.n_prompt for row in rows] == [2, 2]
    asked = recipe.overlay(config, {"rollout": {"prompts": False}}, None)
    others = setup.start_run(asked, load_materials(asked)).policy.rows(
        run.prompts[:2], loop.writer(run), torch.Generator()
    )
    assert [row.trunk for row in others] == [row.trunk for row in rows]
    assert all(row.n_prompt > 2 for row in others)
    prompts = loop.next_prompts(run.prompts, 0, 2, config.seed)
    assert loop.step(run).n_tokens == sum(
        len(prompt.input_ids) - 2 + len(run.policy.responses[prompt.id]) for prompt in prompts
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"source": "mixed"}}, "a head writes no responses, .* choose rollout.style = branches"),
        (
            {"rollout": {"source": "student", "style": "branches"}, "student": {"unroll": 1}},
            "from their second token on: student.unroll must be 2 or more",
        ),
        ({"objective": {"reference": "x/y", "keep": 0.5}}, "selects a model's tokens; a head has none"),
        (
            {"optimiser": {"compile": True}},
            "optimiser.compile is for models",
        ),
        ({"optimiser": {"sharded": "weights"}}, "choose optimiser.sharded = moments or none"),
        ({"student": {"start": "slice"}}, "student.start is aligned or random"),
        ({"student": {"kind": "slice"}}, "student.start = random is for student.kind = head"),
        ({"student": {"kind": "slice", "start": "aligned", "reads": (0, 1, 2)}}, "student.reads is for"),
        ({"student": {"kind": "slice", "start": "aligned", "model": "x/y"}}, "student.model names 'x/y'"),
        ({"student": {"kind": "model", "start": "aligned"}}, "needs student.model"),
        ({"student": {"reads": (0, 1)}}, "3 layers that rise from 0 to 4"),
        ({"student": {"reads": (0, 1, 5)}}, "3 layers that rise from 0 to 4"),
    ],
)
def test_what_a_head_cannot_do_is_one_line(tiny: Tiny, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_all([a_head(tiny, **changes)])


def test_a_head_and_a_model_are_told_apart(tiny: Tiny, tmp_path: Path, teacher_folder: Path) -> None:
    train_all([a_head(tiny, "untrained", output=tmp_path / "head")])
    with pytest.raises(UserError, match="is a head, which drafts from a teacher's states"):
        load_materials(tiny()).student(tiny(student={"model": str(tmp_path / "head")}).student)
    with pytest.raises(UserError, match="is no head"):
        train_all([a_head(tiny, student={"model": str(teacher_folder)})])


def test_the_plan_counts_a_head_and_what_is_kept_for_it(tiny: Tiny) -> None:
    config = recipe.completed(
        a_head(tiny, teacher={"reuse_states": True}, data={"n_train": 10}, student={"draft_vocabulary": 20})
    )
    plan = make_plan(config)
    made = load_materials(config).student(config.student)
    assert plan.student_parameters == sum(parameter.numel() for parameter in made.parameters())
    assert plan.gradients == 4 * sum(each.numel() for each in made.parameters() if each.requires_grad)
    assert plan.optimiser == 2 * plan.gradients
    assert plan.states == (10 + 32) * (6 + 3 * (16 + 6)) * 16 * 4
    assert make_plan(recipe.completed(tiny("seqkd"))).states == 0


def test_the_plan_counts_what_checkpointing_spares(tiny: Tiny) -> None:
    """Of four steps one is recomputed at a time."""
    plans = [
        make_plan(
            recipe.completed(
                a_head(tiny, student={"unroll": 4}, optimiser={"gradient_checkpointing": checkpointing})
            )
        )
        for checkpointing in (False, True)
    ]
    assert plans[1].activations < 0.6 * plans[0].activations


@pytest.mark.parametrize("of_recipe", [None, "head", "slice"])
@pytest.mark.parametrize("of_arm", [None, "head", "slice"])
@pytest.mark.parametrize("of_flag", [None, "head", "slice"])
def test_a_preset_follows_the_kind_that_holds_in_the_end(
    tmp_path: Path, of_recipe: str | None, of_arm: str | None, of_flag: str | None
) -> None:
    """Flag over arm over recipe."""
    path = tmp_path / "recipe.toml"
    kinds = {"student": of_recipe, "arms.one.student": of_arm, "arms.two.student": of_arm}
    tables = [f'[{table}]\nkind = "{kind}"\n' for table, kind in kinds.items() if kind]
    arms = "[arms.one]\nmethod = 'untrained'\n[arms.two]\nmethod = 'distillspec'\n"
    path.write_text("".join([arms, *tables]))
    words = ["--recipe", str(path), *(["--student.kind", of_flag] if of_flag else [])]
    untrained, distilled = configs(words)
    kind = of_flag or of_arm or of_recipe
    assert untrained.student.kind == distilled.student.kind == kind
    assert untrained.student.start == ("random" if kind == "head" else "slice")
    assert (distilled.rollout.source, distilled.rollout.style) == (
        "teacher" if kind == "head" else "mixed",
        "full",
    )


@pytest.mark.parametrize("of_flag", [[], ["--student.kind", "head"], ["--student.kind", "slice"]])
def test_a_sweep_over_kinds_gives_each_its_own_preset_and_rate(of_flag: list[str]) -> None:
    head, piece = configs(["--method", "untrained", *of_flag, "--sweep", "student.kind=head,slice"])
    assert (head.student.start, piece.student.start) == ("random", "slice")
    assert head.optimiser.lr == recipe.RATES["new head"]
    assert recipe.RATES["bare slice"] == piece.optimiser.lr


def test_a_kind_that_there_is_not_is_one_line() -> None:
    for words in (["--student.kind", "sliced"], ["--sweep", "student.kind=sliced"]):
        with pytest.raises(UserError, match=r"sliced.*student.kind|student.kind.*sliced"):
            configs(words)
    with pytest.raises(UserError, match=r"writers.*rollout.source|rollout.source.*writers"):
        configs(["--rollout.source", "writers"])
