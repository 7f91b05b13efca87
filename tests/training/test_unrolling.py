"""A head's drafts along given text are those of decoding, token for token; the loss and metrics over their steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.decoding import DraftCosts, EagleDrafter, generate
from specalign.decoding.drafters import Drafting, Kind, MakeStepper, Proposer, TokenByToken
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session
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
PROMPTS = [[5, 9, 31, 7, 7, 12, 9], [3, 8], [17, 4, 30], [8, 9, 10]]
N_NEW, GAMMA = 24, 4
ROWS = [Row((5, 6, 7, 20, 21, 9, 11, 30), 3), Row((8, 9, 10, 11, 12, 13), 2), Row((30, 31, 32, 4), 3)]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def teacher(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param)


@pytest.fixture(scope="module")
def head(teacher: PreTrainedModel) -> EagleHead:
    return noisy_head(teacher)


def noisy_head(teacher: PreTrainedModel) -> EagleHead:
    """Over 30 of 40 ids; far from uniform."""
    made = new_head(teacher, head_config(teacher.config, READS, 30), torch.arange(2, 32), seed=2)
    with torch.no_grad():
        for parameter in made.layers.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return made


def drafted(head: EagleHead, layout: Layout, n_steps: int) -> list[Tensor]:
    return [head_of(head)(step) for step in unrolled(head, layout, n_steps)]


class Told:
    """A head in the engine that proposes what it is told: mostly what the text goes on with."""

    kind: ClassVar[Kind] = "model"
    adaptive: ClassVar[None] = None
    alone: ClassVar[None] = None

    def __init__(self, drafter: EagleDrafter, texts: list[list[int]]) -> None:
        self.drafter, self.texts, self.reads = drafter, texts, drafter.reads
        self.drafted: dict[tuple[int, int, int], Tensor] = {}
        """(text, place, step) -> the head's logits [V'] for the token at ``place``, in this step of a draft that the
        text agrees with so far."""

    def with_costs(self, _costs: DraftCosts | None) -> Told:
        return self

    def made_ready(self, _make: MakeStepper) -> Told:
        return self

    def start(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, target: Session
    ) -> Drafting:
        drafting = self.drafter.start(prompts, n_new, sampling, target)
        assert isinstance(drafting, TokenByToken)
        drafting.rows = ToldRows(drafting.rows, self)
        return drafting


class ToldRows:
    """The head's own rows: only which token follows is not its choice."""

    sampling = Sampling(0.0)

    def __init__(self, rows: Proposer, told: Told) -> None:
        self.rows, self.told, self.device = rows, told, rows.device
        self.within_context, self.keep = rows.within_context, rows.keep
        self.ids: Any = self

    def begin(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        begun = [[n for n, text in enumerate(self.told.texts) if text[: len(s)] == s] for s in sequences]
        self.rows_of = [(number, len(s)) for (number,), s in zip(begun, sequences, strict=True)]
        self.step, self.agreed = 0, [True] * len(sequences)
        return self._noted(self.rows.begin(sequences))

    def follow(self, ids: Tensor) -> Tensor:
        self.step += 1
        return self._noted(self.rows.follow(ids))

    def likeliest(self, _logits: Tensor) -> Tensor:
        ids = []
        for row, (number, length) in enumerate(self.rows_of):
            wrong = (length + 2 * self.step + number) % 5 == 0
            self.agreed[row] &= not wrong
            ids.append((self._text(number, length + self.step) + wrong) % 40)
        return torch.tensor(ids)

    def _text(self, number: int, place: int) -> int:
        text = self.told.texts[number]
        return text[place] if place < len(text) else 0

    def _noted(self, logits: Tensor) -> Tensor:
        for row, (number, length) in enumerate(self.rows_of):
            if self.agreed[row] and length + self.step < len(self.told.texts[number]):
                self.told.drafted[number, length + self.step, self.step] = logits[row]
        return logits


@dataclass(frozen=True)
class Decoded:
    """Texts that the engine decoded with a head, and what it drafted from."""

    head: EagleHead
    layout: Layout
    """The texts, with the teacher's states."""
    drafted: dict[tuple[int, int, int], Tensor]

    def difference(self, layout: Layout) -> float:
        """The largest one between these logits and the unrolled ones, relative to the largest logit."""
        with torch.no_grad():
            steps = drafted(self.head, layout, GAMMA)
        ours = torch.stack([steps[step][self._index(*where)] for *where, step in self.drafted])
        theirs = torch.stack(list(self.drafted.values()))
        return float((ours - theirs).abs().max() / theirs.abs().max())

    def _index(self, number: int, place: int) -> int:
        """Of the token at ``place`` among the scored ones, which are all but the first two of each text."""
        return sum(len(prompt) + N_NEW - 2 for prompt in PROMPTS[:number]) + place - 2


@cache
def decoded(family: str) -> Decoded:
    """In float32, in one ragged batch, with drafts that are accepted, rejected and cut, and rows that leave early."""
    teacher = make_model(family).float()
    head = noisy_head(teacher)
    new = generate(teacher, None, PROMPTS, max_new_tokens=N_NEW, eos=()).token_ids
    texts = [[*prompt, *ids] for prompt, ids in zip(PROMPTS, new, strict=True)]
    told = Told(EagleDrafter(head), texts)
    done = generate(teacher, told, PROMPTS, gamma=GAMMA, max_new_tokens=N_NEW, eos=())
    assert done.token_ids == new
    accepted = {(step.n_drafted, step.n_accepted) for row in done.steps for step in row}
    assert {n for drafted, n in accepted if drafted == GAMMA} >= {0, 1, GAMMA}
    rows = lay_out([Row(tuple(text), 2) for text in texts], packed=True)
    return Decoded(head, observed(teacher, rows, READS)[0], told.drafted)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
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
