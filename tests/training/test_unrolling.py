"""A head's drafts along given text are those of decoding, token for token; the loss and metrics over their steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from specalign.losses import objective
from specalign.models.eagle import EagleHead
from specalign.models.eagle_start import head_config, new_head
from specalign.models.heads import head_of
from specalign.models.tiny import make_model
from specalign.training.rows import Layout, Row, lay_out
from specalign.training.scoring import Pair, observed, overlaps, per_token_loss
from specalign.training.unrolling import seen, unrolled
from specalign.training.validation import Validation, windows

READS = (0, 1, 3)
ROWS = [Row((5, 6, 7, 20, 21, 9, 11, 30), 3), Row((8, 9, 10, 11, 12, 13), 2), Row((30, 31, 32, 4), 3)]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def teacher(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param)


@pytest.fixture(scope="module")
def head(teacher: PreTrainedModel) -> EagleHead:
    made = new_head(teacher, head_config(teacher.config, READS, 30), torch.arange(2, 32), seed=2)
    with torch.no_grad():
        for parameter in made.layers.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return made


def stepped(head: EagleHead, text: tuple[int, ...], read: Tensor, base: int, n_steps: int) -> list[Tensor]:
    """Logits [V'] of a draft after entry ``base``, with a cache as an engine has it: one token at a time."""
    cache = DynamicCache()
    ids = torch.tensor([text])
    found: list[Tensor] = []
    true = range(base + 1)
    hidden = head.project(read[: base + 1])[None]
    output = head(
        ids[:, 1 : base + 2],
        hidden,
        position_ids=torch.tensor([[*true]]),
        attention_mask=None,
        past_key_values=cache,
    )
    for place in range(base, base + n_steps):
        found.append(head_of(head)(head.head_input(output[0, -1])))
        if place + 2 >= len(text):
            break
        output = head(
            ids[:, place + 2 : place + 3],
            output[:, -1:],
            position_ids=torch.tensor([[place + 1]]),
            attention_mask=torch.ones(1, 1, 1, place + 2, dtype=torch.bool),
            past_key_values=cache,
        )
    return found


def drafted(head: EagleHead, layout: Layout, n_steps: int) -> list[Tensor]:
    return [head_of(head)(step) for step in unrolled(head, layout, n_steps)]


@torch.no_grad()
def largest_difference(head: EagleHead, teacher: PreTrainedModel, layout: Layout, n_steps: int = 4) -> float:
    """Between unrolled logits and those of real drafts, over every draft that ends at a scored token."""
    found = drafted(head, layout, n_steps)
    exact, _ = observed(teacher, lay_out(ROWS, packed=True), READS)
    assert exact.read is not None
    worst, index, n_compared = 0.0, 0, 0
    for row, read in zip(ROWS, exact.read, strict=True):
        for place in range(row.n_prompt, len(row.trunk)):
            for step in range(n_steps):
                base = place - 2 - step
                if base >= 0:
                    real = stepped(head, row.trunk, read, base, step + 1)[step]
                    worst = max(worst, float((found[step][index] - real).abs().max()))
                    n_compared += 1
            index += 1
    assert n_compared == 29
    return worst


def test_unrolled_logits_are_those_of_real_drafts(head: EagleHead, teacher: PreTrainedModel) -> None:
    layout, _ = observed(teacher, lay_out(ROWS, packed=True), READS)
    assert largest_difference(head, teacher, layout) < 1e-9


def test_states_shifted_by_one_position_are_found_out(head: EagleHead, teacher: PreTrainedModel) -> None:
    layout, _ = observed(teacher, lay_out(ROWS, packed=True), READS)
    assert layout.read is not None
    shifted = replace(layout, read=layout.read.roll(1, dims=1))
    assert largest_difference(head, teacher, shifted) > 1e-2


def test_a_mask_that_forgets_the_drafts_own_entries_is_found_out(
    head: EagleHead, teacher: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(n: int, step: int, device: torch.device) -> Tensor:
        mask = seen(n, step, device).clone()
        if step > 1:
            mask[:, n : 2 * n] = False
        return mask

    monkeypatch.setattr("specalign.training.unrolling.seen", forgetful)
    layout, _ = observed(teacher, lay_out(ROWS, packed=True), READS)
    assert largest_difference(head, teacher, layout) > 1e-3


def test_what_a_draft_sees() -> None:
    """The third step of a draft whose first one was entry 1: true entries 0 and 1, then its own two."""
    mask = seen(5, 2, torch.device("cpu"))
    assert mask[3].nonzero().flatten().tolist() == [0, 1, 5 + 2, 10 + 3]
    assert seen(5, 0, torch.device("cpu")).equal(torch.ones(5, 5).tril().bool())


def test_a_draft_that_would_begin_before_the_text_begins_with_it(
    head: EagleHead, teacher: PreTrainedModel
) -> None:
    layout, _ = observed(teacher, lay_out([Row((8, 9, 10, 11), 2)], packed=True), READS)
    first, second, third = drafted(head, layout, 3)
    assert torch.equal(first[0], second[0])  # of the third token there is one draft, that of one token
    assert torch.equal(second[1], third[1])
    assert not torch.allclose(first[1], second[1])


def test_the_loss_is_the_mean_over_steps_and_reaches_the_head_alone(
    head: EagleHead, teacher: PreTrainedModel
) -> None:
    teacher.requires_grad_(False)
    layout, known = observed(teacher, lay_out(ROWS, packed=True), READS)
    kl = objective({"forward_kl": 1.0})
    pair = Pair(head, teacher, 40, head.draft_ids, unroll=3, decay=0.5)
    student, whole = pair.heads()
    parts = [kl(student(step), whole(known)) for step in unrolled(head, layout, 3)]
    expected = (parts[0] + 0.5 * parts[1] + 0.25 * parts[2]) / 1.75
    loss = per_token_loss(pair, layout, kl, known)
    torch.testing.assert_close(loss, expected)
    head.zero_grad()
    loss.mean().backward()
    missing = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert missing == ["embed_tokens.weight"]
    weights = [head.fc.weight, head.get_parameter("layers.0.mlp.up_proj.weight")]
    for weight, slope in zip(weights, torch.autograd.grad(expected.mean(), weights), strict=True):
        torch.testing.assert_close(weight.grad, slope)


def test_expected_tau_takes_each_position_from_its_own_step(head: EagleHead, teacher: PreTrainedModel) -> None:
    layout, known = observed(teacher, lay_out(ROWS[:2], packed=True), READS)
    pair = Pair(head, teacher, 40, head.draft_ids)
    found = overlaps(pair, layout, known, n_steps=3)
    assert torch.equal(found.alpha, found.drafted[0])
    a = found.drafted
    wanted = [
        1 + a[0, t] + a[0, t] * a[1, t + 1] + a[0, t] * a[1, t + 1] * a[2, t + 2] for t in (0, 1, 2, 5, 6)
    ]
    score = Validation(((layout, known),), (1, 1), (), 5, gamma=3).score(pair)
    assert score.tau == pytest.approx(float(sum(wanted)) / 5)
    assert score.alpha == pytest.approx(float(found.alpha.mean()))
    assert score.by_place[0] == pytest.approx(float(a[0][[0, 1, 2, 5, 6]].mean()))
    assert score.by_place[2] == pytest.approx(float(a[2][[2, 3, 4, 7, 8]].mean()))
    assert windows([[0.5, 0.25]], 2) == [[0.5, 0.25]]  # a model has one kind of step


def test_overlaps_finds_what_it_is_not_given(head: EagleHead, teacher: PreTrainedModel) -> None:
    layout = lay_out(ROWS, packed=True)
    pair = Pair(head, teacher, 40, head.draft_ids)
    given = overlaps(pair, *observed(teacher, layout, READS), n_steps=2)
    torch.testing.assert_close(overlaps(pair, layout, n_steps=2).drafted, given.drafted)
