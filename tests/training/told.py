"""A head in the engine that drafts what it is told, and what it drafted from: what training is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.decoding import DraftCosts, EagleDrafter, generate
from specalign.decoding.drafters import Drafting, Kind, MakeStepper, Proposer, TokenByToken
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session
from specalign.models.eagle import EagleHead
from specalign.models.eagle_start import head_config, new_head
from specalign.models.heads import head_of
from specalign.models.tiny import make_model
from specalign.training.rows import Layout, Row, lay_out
from specalign.training.scoring import observed
from specalign.training.unrolling import unrolled

READS = (0, 1, 3)
PROMPTS = [[5, 9, 31, 7, 7, 12, 9], [3, 8], [17, 4, 30], [8, 9, 10]]
N_NEW, GAMMA = 24, 4
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3"]


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


@dataclass
class Draft:
    """What was drafted in one go, right or wrong, and the head's logits [V'] for each token of it."""

    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


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
        self.drafts: dict[tuple[int, int], Draft] = {}
        """(text, place of its first token) -> the draft."""

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
        self.within_context, self.keep, self.ready = rows.within_context, rows.keep, rows.ready
        self.ids: Any = self

    def begin(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        begun = [[n for n, text in enumerate(self.told.texts) if text[: len(s)] == s] for s in sequences]
        self.rows_of = [(number, len(s)) for (number,), s in zip(begun, sequences, strict=True)]
        self.step, self.agreed = 0, [True] * len(sequences)
        self.told.drafts |= {where: Draft() for where in self.rows_of}
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
            self.told.drafts[number, length].tokens.append(ids[-1])
        return torch.tensor(ids)

    def _text(self, number: int, place: int) -> int:
        text = self.told.texts[number]
        return text[place] if place < len(text) else 0

    def _noted(self, logits: Tensor) -> Tensor:
        for row, (number, length) in enumerate(self.rows_of):
            self.told.drafts[number, length].logits.append(logits[row])
            if self.agreed[row] and length + self.step < len(self.told.texts[number]):
                self.told.drafted[number, length + self.step, self.step] = logits[row]
        return logits


@dataclass(frozen=True)
class Decoded:
    """Texts that the engine decoded with a head, and what it drafted from."""

    teacher: PreTrainedModel
    head: EagleHead
    texts: list[list[int]]
    layout: Layout
    """The texts, with the teacher's states."""
    drafted: dict[tuple[int, int, int], Tensor]
    drafts: dict[tuple[int, int], Draft]

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
    layout = observed(teacher, rows, READS)[0]
    return Decoded(teacher, head, texts, layout, told.drafted, told.drafts)
