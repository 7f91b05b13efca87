"""A head's drafts along given text are those of decoding, token for token; the loss and metrics over their steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.losses import objective
from specalign.models.eagle import EagleHead
from specalign.models.tiny import make_model
from specalign.training.rows import Row, lay_out
from specalign.training.scoring import Pair, observed, overlaps, per_token_loss
from specalign.training.unrolling import seen, unrolled
from specalign.training.validation import Validation, windows
from tests.training.told import FAMILIES, GAMMA, READS, decoded, drafted, noisy_head

ROWS = [Row((5, 6, 7, 20, 21, 9, 11, 30), 3), Row((8, 9, 10, 11, 12, 13), 2), Row((30, 31, 32, 4), 3)]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def teacher(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param)


@pytest.fixture(scope="module")
def head(teacher: PreTrainedModel) -> EagleHead:
    return noisy_head(teacher)


@pytest.mark.parametrize("family", FAMILIES)
def test_unrolled_logits_are_those_that_the_engine_drafts_from(family: str) -> None:
    """Token for token, in every step of a draft, whatever was drafted and rejected before it."""
    found = decoded(family)
    assert all(sum(step == each for *_, step in found.drafted) >= 10 for each in range(GAMMA))
    assert found.difference(found.layout) < 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_states_shifted_by_one_position_are_found_out(family: str) -> None:
    found = decoded(family)
    assert found.layout.read is not None
    shifted = replace(found.layout, read=found.layout.read.roll(1, dims=1))
    assert found.difference(shifted) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_mask_that_forgets_the_drafts_own_entries_is_found_out(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(n: int, step: int, device: torch.device) -> Tensor:
        mask = seen(n, step, device).clone()
        if step > 1:
            mask[:, n : 2 * n] = False
        return mask

    monkeypatch.setattr("specalign.training.unrolling.seen", forgetful)
    found = decoded(family)
    assert found.difference(found.layout) > 1e-3


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
