"""A head's own drafts in training: those of decoding, judged by the teacher as plain text is; the loss on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specalign.decoding.sampling import Sampling
from specalign.losses import LOSSES
from specalign.models.eagle import EagleHead
from specalign.models.heads import head_of
from specalign.training import checkpoints, folder, loop, own_drafts, recipe, setup
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials
from specalign.training.own_drafts import drawn, judge, losses_with_drafts, replaced
from specalign.training.plan import make_plan, print_plan
from specalign.training.preflight import findings
from specalign.training.rows import Row, lay_out
from specalign.training.scoring import observed
from specalign.training.session import train_all
from specalign.training.unrolling import Drafted, along_drafts, begun
from specalign.training.validation import make_validation
from tests.training.told import FAMILIES, GAMMA, Decoded, Draft, decoded

Tiny = Callable[..., TrainConfig]


def on_policy(tiny: Tiny, method: str = "distillspec", **changes: Any) -> TrainConfig:
    """Three steps of drafts off four tokens of every text, or what else is said."""
    rollout = {"source": "student", "style": "branches", "branches": 4, **changes.pop("rollout", {})}
    student = {"kind": "head", "start": "random", "unroll": 3, **changes.pop("student", {})}
    return tiny(method, rollout=rollout, student=student, **changes)


def whole_drafts(found: Decoded) -> list[list[tuple[int, Draft]]]:
    """Of each text the drafts that were not cut, with their place, in order."""
    lines: list[list[tuple[int, Draft]]] = [[] for _ in found.texts]
    for (number, place), draft in sorted(found.drafts.items(), key=lambda each: each[0]):
        if len(draft.tokens) == GAMMA and place < len(found.texts[number]):
            lines[number].append((place, draft))
    return lines


def told_again(found: Decoded, tokens: Callable[[Draft], Sequence[int]]) -> Drafted:
    """The drafts of training off the same places, with the tokens that they are told."""
    lines = whole_drafts(found)
    told = torch.tensor([tokens(draft) for line in lines for _, draft in line])
    steps = iter(told.T)
    anchors = [[place for place, _ in line] for line in lines]
    with torch.no_grad():
        return along_drafts(begun(found.head, found.layout), anchors, GAMMA, lambda _states: next(steps))


def difference(found: Decoded, tokens: Callable[[Draft], Sequence[int]] = lambda draft: draft.tokens) -> float:
    """The largest one to the engine's logits, relative to the largest logit, in all steps but the first."""
    again = told_again(found, tokens)
    ours = head_of(found.head)(torch.stack(again.steps, dim=1)).detach()
    theirs = torch.stack([torch.stack(draft.logits[1:]) for line in whole_drafts(found) for _, draft in line])
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_in_training_are_those_of_the_engine(family: str) -> None:
    """Token for token where it drafts the same tokens, those that the target rejects and what follows them included."""
    found = decoded(family)
    lines = whole_drafts(found)
    apart = [
        draft.tokens != found.texts[number][place : place + GAMMA]
        for number, line in enumerate(lines)
        for place, draft in line
    ]
    assert sum(apart) >= 8
    assert difference(found) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_draft_that_reads_other_tokens_is_found_out(family: str) -> None:
    found = decoded(family)
    assert difference(found, lambda draft: [(token + 1) % 40 for token in draft.tokens]) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_draft_that_forgets_its_own_entries_is_found_out(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(width: int, step: int, device: torch.device) -> Tensor:
        own = torch.eye(width, dtype=torch.bool, device=device).repeat(1, step)
        own[:, : (step - 1) * width] = False
        return own

    monkeypatch.setattr("specalign.training.unrolling.own_entries", forgetful)
    assert difference(decoded(family)) > 1e-3


def judged_wrongly_by(found: Decoded, *, packed: bool) -> float:
    """The largest difference between the teacher's states along branches and after the same tokens alone."""
    lines = whole_drafts(found)
    rows = [
        Row(tuple(text), 2, anchors=tuple(place for place, _ in line))
        for text, line in zip(found.texts, lines, strict=True)
    ]
    drafts = [draft.tokens for line in lines for _, draft in line]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_drafts, "eos_ids", lambda _model: ())
        seen = judge(found.teacher, rows, drafts, packed=packed)
    assert seen is not None
    assert seen.step.tolist() == [*range(1, GAMMA)] * len(drafts)
    texts = [found.texts[number][:place] for number, line in enumerate(lines) for place, _ in line]
    plain = []
    for draft, step in zip(seen.draft.tolist(), seen.step.tolist(), strict=True):
        ids = torch.tensor([texts[draft] + drafts[draft][:step]])
        with torch.no_grad():
            plain.append(found.teacher.get_decoder()(input_ids=ids).last_hidden_state[0, -1])
    return float((seen.states - torch.stack(plain)).abs().max() / torch.stack(plain).abs().max())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_says_what_it_says_after_the_same_tokens(family: str, packed: bool) -> None:
    assert judged_wrongly_by(decoded(family), packed=packed) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_branch_that_is_judged_without_its_own_tokens_is_found_out(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specalign.training import rows

    real = rows._visible

    def blind(lines: Any, width: int, device: torch.device) -> Tensor:
        trunk = torch.tensor([[*line.branch, *[0] * (width - len(line.branch))] for line in lines]) == 0
        return real(lines, width, device) & (trunk[:, None, :] | torch.eye(width, dtype=torch.bool))

    monkeypatch.setattr(rows, "_visible", blind)
    assert judged_wrongly_by(decoded(family), packed=True) > 1e-3


def test_nothing_follows_a_drafted_end(monkeypatch: pytest.MonkeyPatch) -> None:
    found = decoded("llama")
    rows = [Row((5, 6, 7, 20, 21, 9), 3, anchors=(3, 5)), Row((8, 9, 10, 11), 2, anchors=(3,))]
    monkeypatch.setattr(own_drafts, "eos_ids", lambda _model: (9, 12))
    for packed in (True, False):
        seen = judge(found.teacher, rows, [[4, 9, 5], [9, 4, 4], [4, 5, 6]], packed=packed)
        assert seen is not None
        assert [seen.draft.tolist(), seen.step.tolist()] == [[0, 2, 2], [1, 1, 2]]
    assert judge(found.teacher, rows, [[9, 4, 5], [12, 4, 4], [9, 5, 6]], packed=True) is None


def test_a_draft_stands_in_for_the_text_behind_its_anchor() -> None:
    """Tokens 3, 4, 5 of one text and 2, 3, 4, 5 of another; the first's last draft goes on behind its end."""
    rows = [Row((5, 6, 7, 20, 21, 9), 3), Row((8, 9, 10, 11, 12, 13), 2)]
    layout, _ = observed(decoded("llama").teacher, lay_out(rows, packed=True), ())
    seen = own_drafts.Judged(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([1, 2, 1, 2, 1]), torch.zeros(5, 1))
    gone = replaced(layout, [[3, 5], [2]], seen, 3)
    assert [step.nonzero().flatten().tolist() for step in gone] == [[], [1, 4], [2]]
    assert not torch.stack(replaced(layout, [[3, 5], [2]], None, 3)).any()


def test_greedy_drafts_take_the_likeliest_id() -> None:
    head = decoded("llama").head
    states = torch.randn(7, head.config.layer.hidden_size, generator=torch.Generator().manual_seed(0))
    found = drawn(head_of(head), states, sampling=Sampling(0.0), generator=torch.Generator())
    assert torch.equal(found, head.draft_ids[head.lm_head(states).argmax(-1)])


def the_loss(run: setup.Run, rows: Sequence[Row], seed: int = 3) -> tuple[Tensor, int, Drafted]:
    """The sum of the losses, the drafted tokens in it, and the drafts."""
    layout, known = observed(run.pair.teacher, lay_out([row.text for row in rows], packed=True), run.pair.reads)
    kept: list[Drafted] = []

    def watched(*inputs: Any) -> Drafted:
        kept.append(along_drafts(*inputs))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_drafts, "along_drafts", watched)
        losses, n = losses_with_drafts(run, rows, layout, known, torch.Generator().manual_seed(seed))
    return losses.sum(), n, kept[0]


def test_the_loss_is_that_of_the_drafts_in_place_of_the_text(tiny: Tiny) -> None:
    """By hand: q of plain drafts against p after plain text, weights of each step as without drafts."""
    config = on_policy(tiny, student={"draft_vocabulary": 20, "decay": 0.5})
    run = setup.start_run(config, load_materials(config))
    head, teacher = run.pair.student, run.pair.teacher
    assert isinstance(head, EagleHead)
    rows = [Row((5, 6, 7, 20, 21, 9, 11, 30), 3, anchors=(4, 6)), Row((8, 9, 10, 11, 12), 2)]
    total, n, drafts = the_loss(run, rows)
    assert n == 4

    student, whole = run.pair.heads()

    def divergence(q: Tensor, text: Sequence[int]) -> Tensor:
        with torch.no_grad():
            p = teacher.get_decoder()(input_ids=torch.tensor([text])).last_hidden_state[0, -1]
        return run.objective(student(q), whole(p))

    layout, _ = observed(teacher, lay_out([row.text for row in rows], packed=True), run.pair.reads)
    start = begun(head, layout)
    text = own_drafts.along_text(start, 3)
    weights = [1 / 1.75, 0.5 / 1.75, 0.25 / 1.75]
    places = [(row, place) for row in rows for place in range(row.n_prompt, len(row.trunk))]
    wanted = torch.zeros(())
    for step in range(3):
        for index, (row, place) in enumerate(places):
            if step == 0 or place - step not in row.anchors:
                wanted = wanted + weights[step] * divergence(text[step][index], row.trunk[:place])
    steps = iter(drafts.tokens.T)
    again = along_drafts(start, [(4, 6), ()], 3, lambda _states: next(steps))
    for step in (1, 2):
        for draft, place in enumerate((4, 6)):
            read = [*rows[0].trunk[:place], *drafts.tokens[draft, :step].tolist()]
            wanted = wanted + weights[step] * divergence(again.steps[step - 1][draft], read)
    torch.testing.assert_close(total, wanted)
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(total, trained)
    for slope, expected in zip(ours, torch.autograd.grad(wanted, trained), strict=True):
        assert (slope - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_no_gradient_passes_a_draw_but_all_pass_the_heads_outputs(tiny: Tiny) -> None:
    """A loss on a draft's last step alone reaches what the first step read."""
    found = decoded("llama")
    start = begun(found.head, found.layout)
    draw = partial(
        drawn, head_of(found.head), sampling=Sampling(1.0), generator=torch.Generator().manual_seed(0)
    )
    made = along_drafts(start, [[4], [], [], [3]], 3, draw)
    assert not made.tokens.is_floating_point()
    assert made.tokens.shape == (2, 3)
    (slope,) = torch.autograd.grad(made.steps[-1].sum(), start.output)
    assert slope[0, 2].abs().sum() > 0
    assert slope[0, 3:].abs().sum() == 0


@pytest.mark.parametrize("unroll", [2, 3])
def test_every_objective_trains_a_head_on_its_drafts(tiny: Tiny, unroll: int) -> None:
    materials = load_materials(on_policy(tiny))
    shared = cache(partial(make_validation, materials, "validation"))
    for name in LOSSES:
        config = on_policy(tiny, objective={"weights": {name: 1.0}}, student={"unroll": unroll})
        run = setup.start_run(config, materials, shared)
        head = run.pair.student
        assert isinstance(head, EagleHead)
        before = head.fc.weight.clone()
        assert loop.step(run).grad_norm > 0
        assert not torch.equal(head.fc.weight, before)


def test_drafted_tokens_are_trained_tokens(tiny: Tiny) -> None:
    config = on_policy(tiny, rollout={"branches": 2}, optimiser={"accumulation": 1})
    materials = load_materials(config)
    given = on_policy(tiny, rollout={"source": "teacher"}, optimiser={"accumulation": 1})
    runs = [setup.start_run(each, materials) for each in (config, given)]
    ours, theirs = (loop.step(run).n_tokens for run in runs)
    assert theirs < ours <= theirs + 2 * 2 * 2
    assert [run.position.n_on_policy for run in runs] == [2, 0]


def test_all_places_may_be_drafted_off(tiny: Tiny) -> None:
    """Nothing of the text is left in the later steps, but its first tokens."""
    config = on_policy(tiny, rollout={"branches": 1000, "prompts": True})
    run = setup.start_run(config, load_materials(config))
    rows = run.policy.rows(run.prompts[:2], loop.writer(run), torch.Generator().manual_seed(0))
    assert [row.anchors for row in rows] == [tuple(range(2, len(row.trunk))) for row in rows]
    assert loop.step(run).grad_norm > 0


def test_a_share_of_the_texts_is_drafted_off(tiny: Tiny) -> None:
    config = on_policy(tiny, rollout={"source": "mixed", "student_fraction": 0.25})
    run = setup.start_run(config, load_materials(config))
    prompts = loop.next_prompts(run.prompts, 0, 400, 0)
    rows = run.policy.rows(prompts, loop.writer(run), torch.Generator().manual_seed(0))
    assert 70 < sum(bool(row.anchors) for row in rows) < 130
    assert {len(row.anchors) for row in rows} == {0, 4}
    fixed = [run.policy.fixed(prompt, run.pair.student) for prompt in prompts]
    assert [row.text for row in rows] == fixed
    assert all(
        row.n_prompt <= min(row.anchors) and max(row.anchors) < len(row.trunk) for row in rows if row.anchors
    )


OPTIONS: dict[str, tuple[dict[str, Any], Any]] = {
    "source": ({}, "teacher"),
    "student_fraction": ({"source": "mixed", "student_fraction": 1.0}, 0.0),
    "branches": ({}, 1),
    "prompts": ({}, True),
    "trunk": ({}, "ground_truth"),
    "temperature": ({}, 0.0),
    "top_p": ({}, 0.2),
    "teacher_temperature": ({}, 1.0),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_changes_what_is_drafted(tiny: Tiny, option: str) -> None:
    also, value = OPTIONS[option]
    losses = []
    for rollout in (also, also | {option: value}):
        config = on_policy(tiny, "seqkd" if option == "teacher_temperature" else "gkd", rollout=rollout)
        run = setup.start_run(config, load_materials(config))
        losses.append([loop.step(run).loss for _ in range(2)])
    assert losses[0] != losses[1]


def test_a_branch_a_row_trains_the_same(tiny: Tiny) -> None:
    found = []
    for packed in (True, False):
        config = on_policy(tiny, rollout={"packed": packed})
        run = setup.start_run(config, load_materials(config))
        found.append([loop.step(run).loss for _ in range(2)])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("reuse", [False, True])
def test_an_interrupted_run_goes_on_bit_by_bit(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reuse: bool
) -> None:
    """With states of the texts that are kept, or not; the drafts are judged anew."""
    also: dict[str, Any] = {
        "rollout": {"source": "mixed"},
        "teacher": {"reuse_states": reuse},
        "logging": {"checkpoint_every": 2, "validate_every": 0},
    }
    whole = on_policy(tiny, output=tmp_path / "whole", **also)
    train_all([whole])
    cut = on_policy(tiny, output=tmp_path / "cut", **also)
    real = loop.step

    def stopping(run: setup.Run) -> Any:
        if run.position.step == 3:
            raise KeyboardInterrupt
        return real(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_all([cut])
    assert checkpoints.list_checkpoints(cut.output)
    train_all([cut])
    weights = [(config.output / "model.safetensors").read_bytes() for config in (whole, cut)]
    assert weights[0] == weights[1]
    last = folder.read_log(cut.output)[-2]
    assert 0 < last["student_share"] < 1


def test_checkpointed_gradients_are_the_same(tiny: Tiny) -> None:
    norms = []
    for checkpointing in (False, True):
        config = on_policy(tiny, optimiser={"gradient_checkpointing": checkpointing})
        run = setup.start_run(config, load_materials(config))
        norms.append([loop.step(run).grad_norm for _ in range(2)])
    assert norms[0] == norms[1]


def test_training_on_drafts_brings_a_head_nearer_to_its_teacher(tiny: Tiny) -> None:
    config = on_policy(
        tiny,
        rollout={"source": "mixed", "branches": 100},
        budget={"steps": 60},
        optimiser={"lr": 1e-2},
        logging={"validate_every": 0},
    )
    train_all([config])
    first, last = (line for line in folder.read_log(config.output) if line["kind"] == "validation")
    assert last["alpha"] > first["alpha"] + 0.1
    assert last["tau"] > first["tau"]


def test_the_plan_counts_the_second_pass_of_the_teacher(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """16 + 6 tokens of the text, and four drafts of which two tokens each are read."""
    given, drafts = (
        recipe.completed(on_policy(tiny, rollout={"source": source})) for source in ("teacher", "student")
    )
    plans = [make_plan(config) for config in (given, drafts)]
    text = make_plan(given).flops_per_token * 6
    assert plans[1].flops_per_token * (6 + 8) > text + 2 * _body(plans[0], given) * (22 + 8)
    assert plans[1].activations > plans[0].activations
    assert plans[1].rollouts == 0
    print_plan(drafts)
    assert (
        "the teacher reads 100% of the texts once more, each with 8 drafted tokens" in capsys.readouterr().out
    )


def _body(plan: Any, config: TrainConfig) -> float:
    embedding = dict(load_materials(config).teacher.named_parameters())["model.embed_tokens.weight"]
    return plan.teacher_parameters - embedding.numel()


def test_what_is_trained_on_is_said_before(tiny: Tiny) -> None:
    found = {each.check: each for each in findings([recipe.completed(on_policy(tiny))], data=False)}
    assert "drafts of its own off 100% of them" in found["method distillspec"].detail
