"""Mask tokens beside a row score what a real parallel draft scores, token for token; and the drop keeps its shares."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from specalign.decoding import Masks, ParallelDrafter, generate
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session
from specalign.decoding.stepper import make_stepper
from specalign.errors import UserError
from specalign.losses import LOSSES, objective
from specalign.losses.accepted_length import window_sum
from specalign.models.heads import head_of
from specalign.models.mask_token import masks_of
from specalign.models.tiny import make_model
from specalign.training import loop
from specalign.training.config import TrainConfig
from specalign.training.folder import read_log
from specalign.training.materials import load_materials
from specalign.training.parallel import Drop, Scored, with_masks
from specalign.training.preflight import findings
from specalign.training.rows import Branch, Row, lay_out
from specalign.training.scoring import Pair, overlaps, per_token_loss, states
from specalign.training.session import train_all
from specalign.training.setup import start_run
from specalign.training.validation import make_validation, tau_of_drafts

Tiny = Callable[..., TrainConfig]
MASKS = Masks(token=39, most=4)
FAMILIES = ["llama", "mistral", "qwen2", "gemma2", "gemma3"]
ROWS = [
    Row((3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 2), 7),
    Row((5, 6, 7, 20, 21), 3),
    Row((8, 9, 30, 31), 2, (Branch(2, (22, 23, 24)), Branch(3, (25, 26))), (), on_policy=True),
]


def whole(rows: list[Row], masks: Masks = MASKS) -> Scored:
    """Rows with all their masks."""
    text = lay_out(rows, packed=False)
    return with_masks(text, masks, [masks.most - 1] * text.n_tokens)


def logits_of(model: PreTrainedModel, scored: Scored) -> Tensor:
    with torch.no_grad():
        return head_of(model)(states(model, scored.layout))


def drafted(model: PreTrainedModel, text: list[int], masks: Masks = MASKS) -> Tensor:
    """Logits [K, V] of the engine's own call after ``text``."""
    drafting: Any = ParallelDrafter(model, masks).start(
        [text], 8, Sampling(1.0), Session.start(make_stepper(model), [text], 8)
    )
    with torch.inference_mode():
        return drafting._read([text], masks.most)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_training_logits_are_those_of_a_real_draft(family: str) -> None:
    model, close = make_model(family), 1e-5 if family == "gemma2" else 1e-9  # its softmax is in float32
    scored = whole(ROWS)
    found = logits_of(model, scored)
    copies = scored.layout.sequence_ids.tolist()
    texts = [(row, branch) for row in ROWS for branch in row.scored]
    places = [(row, branch, place) for row, branch in texts for place in range(len(branch.tokens))]
    assert len(places) == scored.text.n_tokens
    for n, (row, branch, place) in enumerate(places):
        text = [*row.trunk[: branch.start], *branch.tokens[:place]]
        own = [at for at, name in enumerate(copies) if name == n]
        assert len(own) == min(MASKS.most, len(branch.tokens) - place)
        assert torch.allclose(found[own], drafted(model, text)[: len(own)], rtol=0, atol=close)
        assert scored.layout.labels[own].tolist() == list(branch.tokens[place : place + len(own)])


@pytest.mark.parametrize(
    "wrong",
    ["no shift of positions", "masks see the text behind them", "a mask does not see the one before it"],
)
def test_a_wrong_layout_is_not_that_of_a_draft(wrong: str) -> None:
    model, scored = make_model("llama"), whole(ROWS[:1])
    layout = scored.layout
    width = scored.text.input_ids.shape[1]
    assert layout.position_ids is not None
    assert layout.visible is not None
    if wrong == "positions":
        changed = replace(layout, position_ids=layout.position_ids.clamp(max=width - 4))
    elif wrong == "masks see the text behind them":
        visible = layout.visible.clone()
        visible[:, width:, :width] = True
        changed = replace(layout, visible=visible)
    else:
        visible = layout.visible.clone()
        visible[:, width + 1, width] = False
        changed = replace(layout, visible=visible)
    assert not torch.allclose(logits_of(model, replace(scored, layout=changed)), logits_of(model, scored))


def test_the_text_does_not_see_its_masks() -> None:
    """Its own positions score what they score without any."""
    model, scored = make_model("llama"), whole(ROWS)
    first = [list(scored.layout.sequence_ids).index(n) for n in range(scored.text.n_tokens)]
    with torch.no_grad():
        plain = head_of(model)(states(model, scored.text))
    assert torch.allclose(logits_of(model, scored)[first], plain, rtol=0, atol=1e-9)


def test_a_mask_learns_the_teachers_distribution_of_its_token() -> None:
    """What is compared is the teacher after the whole text, at the position that has the mask's token."""
    teacher, student = make_model("llama", 1), make_model("llama", 2)
    scored = whole(ROWS)
    with torch.no_grad():
        known = states(teacher, scored.text)
    found = overlaps(Pair(student, teacher, 40), scored.layout, scored.spread(known)).alpha
    p = head_of(teacher)(known).softmax(-1)
    q = logits_of(student, scored).softmax(-1)
    assert scored.source is not None
    assert torch.allclose(found, torch.minimum(p[scored.source], q).sum(-1).float(), atol=1e-5)
    assert scored.text.labels[scored.source].equal(scored.layout.labels)


@pytest.mark.parametrize("name", LOSSES)
def test_every_objective_is_usable_at_every_position(name: str) -> None:
    teacher, student = make_model("llama", 1), make_model("llama", 2)
    scored = whole(ROWS)
    with torch.no_grad():
        known = states(teacher, scored.text)
    losses = per_token_loss(
        Pair(student, teacher, 40), scored.layout, objective({name: 1.0}), scored.spread(known)
    )
    assert losses.shape == scored.layout.labels.shape
    assert losses.isfinite().all()
    (gradient,) = torch.autograd.grad(losses.mean(), list(student.get_input_embeddings().parameters()))
    assert gradient[MASKS.token].abs().max() > 0


def test_the_windows_of_accepted_length_are_the_drafts_themselves() -> None:
    scored = whole(ROWS)
    alpha = torch.rand(scored.layout.n_tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = window_sum(alpha, sequence_ids=scored.layout.sequence_ids, gamma=4)
    begins = [list(scored.layout.sequence_ids).index(n) for n in range(scored.text.n_tokens)]
    expected = [-tau_of_drafts([draft]) for draft in scored.by_copy(alpha)]
    assert loss[begins].tolist() == pytest.approx(expected)


def test_the_drop_keeps_nested_shares_with_a_floor() -> None:
    depths = Drop(keep=0.5, floor=0.2).depths(1000, 6, torch.Generator().manual_seed(3))
    shares = [sum(depth >= k for depth in depths) for k in range(7)]
    assert shares == [1000, 500, 250, 200, 200, 200, 0]
    assert Drop(keep=1.0, floor=0.0).depths(5, 4, torch.Generator()) == [3] * 5
    assert depths != Drop(keep=0.5, floor=0.2).depths(1000, 6, torch.Generator().manual_seed(4))


def parallel(**options: Any) -> dict[str, Any]:
    return {"student": {"parallel": 3, **options}, "rollout": {"source": "teacher"}}


def test_a_parallel_drafter_is_trained_saved_and_drafts(tiny: Tiny) -> None:
    """Its config says what vLLM and this engine read, and it gets better at each place of a draft."""
    fast = {"lr": 0.01, "warmup_steps": 0}
    log = {"every": 60, "validate_every": 0, "probe_prompts": 2}
    config = tiny("distillspec", **parallel(), budget={"steps": 60}, logging=log, optimiser=fast)
    train_all([config])
    run = config.output
    model = AutoModelForCausalLM.from_pretrained(run)
    assert masks_of(model.config) == Masks(63, 3)  # the id that the tokenizer has no token for
    lines = [line for line in read_log(run) if line["kind"] == "validation"]
    for name in ("alpha", "alpha_2", "alpha_3", "tau"):
        assert lines[-1][name] > lines[0][name] + 0.02
    teacher = AutoModelForCausalLM.from_pretrained(config.teacher.model)
    found = generate(
        teacher, ParallelDrafter(model, Masks(63, 3)), [5, 6, 7], gamma=4, max_new_tokens=9, eos=()
    )
    assert found.token_ids == generate(teacher, None, [5, 6, 7], max_new_tokens=9, eos=()).token_ids
    assert max(step.n_drafted for step in found.steps[0]) == 3


def test_masks_are_positions_of_the_loss_but_no_tokens_of_the_budget(tiny: Tiny) -> None:
    runs = {}
    for k in (0, 3):
        config = tiny("seqkd", student={"parallel": k}, output=tiny().output / str(k))
        train_all([config])
        runs[k] = [line["n_tokens"] for line in read_log(config.output)]
    assert runs[0] == runs[3]


def test_one_pass_is_several(tiny: Tiny) -> None:
    """The gradient of a step is the same however it is divided, each position of each mask weighing the same."""
    gradients = []
    for batch in (1, 4):
        config = tiny(
            "distillspec", **parallel(parallel_keep=1.0), optimiser={"batch": batch, "accumulation": 4 // batch}
        )
        run = start_run(config, load_materials(config))
        run.pair.student.double(), run.pair.teacher.double()
        loop.accumulate(run, [Row((5, 6, 7 + n, 20, 21 + n, 30), 3) for n in range(4)], torch.Generator())
        gradients.append([p.grad.clone() for p in run.parameters if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_first_positions_are_validated_as_a_sequential_drafters(tiny: Tiny) -> None:
    """alpha, its error and agreement do not depend on whether the drafter has masks; tau is of what masks draft."""
    config = tiny("aligned", **parallel())
    materials = load_materials(config)
    validation = replace(make_validation(materials), gamma=3)
    run = start_run(config, materials, lambda _reads: validation)
    plain = copy.deepcopy(run.pair.student)
    plain.config.pard_token = None
    ours, theirs = validation.score(run.pair), validation.score(replace(run.pair, student=plain))
    assert ours.alpha == pytest.approx(theirs.alpha, abs=1e-5)
    assert ours.alpha_se == pytest.approx(theirs.alpha_se, abs=1e-5)
    assert (ours.agreement, ours.n_positions) == (theirs.agreement, theirs.n_positions)
    assert ours.tau != pytest.approx(theirs.tau, abs=1e-4)
    assert len(ours.by_place) == 3
    assert not theirs.by_place


def test_an_encoder_decoder_student_is_refused_in_words(tiny: Tiny) -> None:
    config = tiny("distillspec", **parallel())
    materials = load_materials(config)
    t5 = make_model("t5")
    t5.config.pard_token = 39
    materials._starts[config.student] = t5
    with pytest.raises(UserError, match=r"student\.parallel = 3 needs a decoder-only student"):
        start_run(config, materials)


def test_check_names_the_mask_token(tiny: Tiny) -> None:
    def told(config: TrainConfig) -> str:
        (line,) = (found.detail for found in findings([config], data=False) if found.check == "drafts")
        return line

    assert told(tiny("distillspec", **parallel())) == "up to 3 tokens in one call; mask token: id 63"
    assert told(tiny("distillspec")) == "one token a call"
