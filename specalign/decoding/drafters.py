"""Where drafts come from: what a drafter is, and the smaller model. Copies of the text: ``copying``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.decoding.draft_length import DraftCosts, DraftLengths, Origin
from specalign.decoding.head_stepper import HeadStepper
from specalign.decoding.model_rows import DraftIds, ModelRows, confidence
from specalign.decoding.sampling import Sampling, sample
from specalign.decoding.session import Session, decoder_sequences, rooms
from specalign.decoding.stepper import Stepper, make_stepper
from specalign.models.eagle import EagleHead


@dataclass(frozen=True)
class Draft:
    """Proposed tokens of every row."""

    ids: Tensor
    """[B, n]; a row's entries beyond its count mean nothing."""
    counts: list[int]
    """Proposed tokens of each row, at most n."""
    q: Tensor | None
    """[B, n, V]: what each was sampled from; None where all were certain (one-hot), as in greedy decoding."""
    peak: Tensor | None = None
    """[B] the largest of the drafting model's logits, NaN where any of them is; None where no model drafts."""
    origins: Sequence[Origin] | None = None
    """Of a hybrid: where each row's tokens come from."""


class Drafting(Protocol):
    """The drafter's side of one request."""

    def ready(self) -> None:
        """Read the prompts now; else that waits for the first draft. Of a request that was made ready, nothing."""

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """Propose up to ``limits[row]`` tokens to follow each sequence."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""


Kind = Literal["lookup", "model", "hybrid"]
"""What drafts: no model, a model, or several drafters in turn."""


class MakeStepper(Protocol):
    """How the models of a run are made ready."""

    def __call__(self, model: PreTrainedModel, ids: Tensor | None) -> Stepper:
        """What steps a model, with a head over ``ids`` [V'] only if given."""

    def head(self, model: EagleHead) -> HeadStepper:
        """What steps a head on the target's states."""


class Drafter(Protocol):
    """A drafter; it keeps nothing from one request to the next. All that is known of its kind is asked here."""

    kind: ClassVar[Kind]

    @property
    def reads(self) -> tuple[int, ...]:
        """Layers of the target whose states it reads (:mod:`specalign.models.states`); empty: the text alone."""

    @property
    def adaptive(self) -> DraftCosts | None:
        """The costs by which it decides on the length of its drafts; None: it drafts gamma tokens."""

    @property
    def alone(self) -> Stepper | None:
        """The model that drafts, to decode or to be read on its own; None where no single model does."""

    def with_costs(self, costs: DraftCosts | None) -> Drafter:
        """The same with draft lengths by ``costs``, or of gamma tokens (None)."""

    def made_ready(self, make: MakeStepper) -> Drafter:
        """The same with its models stepped by what ``make`` makes of them."""

    def start(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, target: Session
    ) -> Drafting:
        """Begin a request of up to ``n_new`` tokens a row; ``sampling`` makes q, over the target's ids."""


def nothing(n_rows: int, device: torch.device) -> Draft:
    """A draft without tokens."""
    return Draft(torch.zeros(n_rows, 0, dtype=torch.long, device=device), [0] * n_rows, None)


@dataclass(frozen=True)
class Undrafted:
    """Drafts nothing: plain decoding, and a drafter whose context the prompt already fills."""

    device: torch.device

    def ready(self) -> None:
        """There is nothing to read."""

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """No tokens."""
        return nothing(len(sequences), self.device)

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing to keep."""


@dataclass(frozen=True)
class ModelDrafter:
    """A smaller model of the target's family."""

    kind: ClassVar[Kind] = "model"
    reads: ClassVar[tuple[int, ...]] = ()
    model: PreTrainedModel
    draft_vocabulary: Tensor | None = None
    """[V'] ids that its head is trimmed to, ascending; None: all."""
    stepper: Stepper | None = None
    """The same model and vocabulary made ready (packed or compiled); None: eager."""
    adaptive: DraftCosts | None = None
    """Stop drafting where the next token is not expected to pay, for which the host reads one number a row and
    drafted token; None: always draft gamma tokens."""

    @property
    def alone(self) -> Stepper:
        """What steps the model."""
        return self.stepper or make_stepper(self.model, ids=self.draft_vocabulary)

    def with_costs(self, costs: DraftCosts | None) -> ModelDrafter:
        """The same with draft lengths by ``costs``, or of gamma tokens (None)."""
        return replace(self, adaptive=costs)

    def made_ready(self, make: MakeStepper) -> ModelDrafter:
        """The same, packed or compiled."""
        return replace(self, stepper=make(self.model, self.draft_vocabulary))

    def start(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, target: Session
    ) -> Drafting:
        """Begin with the prompts, which are read later."""
        if fills_context(self.model, prompts):
            return Undrafted(self.model.device)
        rows = ModelRows(self.alone, prompts, n_new, sampling, target.head.width)
        return TokenByToken(rows, None if self.adaptive is None else DraftLengths(self.adaptive, len(prompts)))


def fills_context(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> bool:
    """Whether every prompt leaves the model no room to draft."""
    free = rooms(model, decoder_sequences(model, prompts))
    return free is not None and max(free) < 1


class Proposer(Protocol):
    """A model's side of one request: the logits of one drafted token after another."""

    @property
    def ids(self) -> DraftIds:
        """What its logits say of the target's ids."""

    @property
    def device(self) -> torch.device:
        """The model's."""

    def ready(self) -> None:
        """Read the prompts, unless they are."""

    def within_context(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> Sequence[int]:
        """What it can draft of ``limits``. Asked in every step, also where it then drafts nothing."""

    def begin(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, V'] after each sequence; what was drafted before is forgotten."""

    def follow(self, ids: Tensor) -> Tensor:
        """Logits [B, V'] after one more token [B, 1] of each row."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""


class TokenByToken:
    """One request of a drafter that drafts a token a call. Drafting gamma tokens never waits for the device."""

    def __init__(self, rows: Proposer, lengths: DraftLengths | None) -> None:
        self.rows, self.lengths = rows, lengths

    def ready(self) -> None:
        """Read the prompts."""
        self.rows.ready()

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """x_1, ..., x_n ~ q, one forward call each; nothing beyond the drafter's context."""
        kept = self.rows.ids
        limits = self.rows.within_context(sequences, limits)
        if self.lengths:
            self.lengths.settle(sequences)
            self.lengths.begin(limits)
        if not any(limits) or (self.lengths and not self.lengths.go_on()):
            return nothing(len(sequences), self.rows.device)
        ids: list[Tensor] = []
        peaks: list[Tensor] = []
        distributions: list[Tensor] = []
        while True:
            logits = self.rows.follow(ids[-1]) if ids else self.rows.begin(sequences)
            q = None if kept.sampling.greedy else kept.distribution(logits)
            ids.append((kept.likeliest(logits) if q is None else sample(q, generator)).unsqueeze(1))
            peaks.append(logits.amax(-1))
            if q is not None:
                distributions.append(q)
            if self.lengths:
                self.lengths.drafted(confidence(logits, q, ids[-1].squeeze(1)).tolist())
            if len(ids) == max(limits) or (self.lengths and not self.lengths.go_on()):
                break
        counts = self.lengths.counts if self.lengths else list(limits)
        q = torch.stack(distributions, 1) if distributions else None
        return Draft(torch.cat(ids, 1), counts, q, torch.stack(peaks).amax(0))

    def promise(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> list[float]:
        """By the mean acceptance so far: what a token will be trusted with is known once it is drafted."""
        assert self.lengths, "a drafter without costs promises nothing"
        return self.lengths.promise(self.rows.within_context(sequences, limits))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.rows.keep(rows)
        if self.lengths:
            self.lengths.keep(rows)
