"""Where drafts come from: what a drafter is, and the smaller model. Copies of the text: ``copying``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from specalign.decoding.draft_length import DraftCosts, DraftLengths
from specalign.decoding.sampling import Sampling, probabilities, sample
from specalign.decoding.session import Session, decoder_sequences, rooms
from specalign.decoding.stepper import Stepper, make_stepper
from specalign.decoding.transfer import to_device
from specalign.models.properties import context_limit


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


class Drafting(Protocol):
    """The drafter's side of one request."""

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """Propose up to ``limits[row]`` tokens to follow each sequence."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""


Kind = Literal["lookup", "model", "hybrid"]
"""What drafts: no model, a model, or several drafters in turn."""
MakeStepper = Callable[[PreTrainedModel, Tensor | None], Stepper]
"""(model, ids of its trimmed head or None) -> what steps it."""


class Drafter(Protocol):
    """A drafter; it keeps nothing from one request to the next. All that is known of its kind is asked here."""

    kind: ClassVar[Kind]

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
        """Prefill the drafter."""
        free = rooms(self.model, decoder_sequences(self.model, prompts))
        if free is not None and max(free) < 1:
            return Undrafted(self.model.device)
        session = Session.start(self.alone, prompts, n_new)
        lengths = None if self.adaptive is None else DraftLengths(self.adaptive, len(prompts))
        return _ModelDrafting(session, sampling, target.head.width, lengths)


class _ModelDrafting:
    """One request of a ModelDrafter. Drafting gamma tokens never waits for the device."""

    def __init__(self, session: Session, sampling: Sampling, width: int, lengths: DraftLengths | None) -> None:
        self.session, self.sampling, self.width, self.lengths = session, sampling, width, lengths
        self.context = context_limit(session.model)

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """x_1, ..., x_n ~ q, one forward call each; nothing beyond the drafter's context."""
        limits = self._within_context(sequences, limits)
        if self.lengths:
            self.lengths.settle(sequences)
            self.lengths.begin(limits)
        if not any(limits) or (self.lengths and not self.lengths.go_on()):
            return nothing(len(sequences), self.session.model.device)
        pending = self._pending(sequences)
        ids: list[Tensor] = []
        peaks: list[Tensor] = []
        distributions: list[Tensor] = []
        while True:
            logits = self.session.extend(pending)[:, -1]
            q = None if self.sampling.greedy else self._distribution(logits)
            pending = (self._likeliest(logits) if q is None else sample(q, generator)).unsqueeze(1)
            ids.append(pending)
            peaks.append(logits.amax(-1))
            if q is not None:
                distributions.append(q)
            if self.lengths:
                self.lengths.drafted(self._confidence(logits, q, pending))
            if len(ids) == max(limits) or (self.lengths and not self.lengths.go_on()):
                break
        counts = self.lengths.counts if self.lengths else list(limits)
        q = torch.stack(distributions, 1) if distributions else None
        return Draft(torch.cat(ids, 1), counts, q, torch.stack(peaks).amax(0))

    def promise(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> list[float]:
        """By the mean acceptance so far: what a token will be trusted with is known once it is drafted."""
        assert self.lengths, "a drafter without costs promises nothing"
        within = self._within_context(sequences, limits)
        return [row.promise((), limit)[0] for row, limit in zip(self.lengths.rows, within, strict=True)]

    def _within_context(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> Sequence[int]:
        if self.context is None:
            return limits
        return [max(0, min(n, self.context - len(text))) for n, text in zip(limits, sequences, strict=True)]

    def _confidence(self, logits: Tensor, q: Tensor | None, ids: Tensor) -> list[float]:
        """The drafter's probability of each row's token [B, 1]; at temperature 1 where decoding is greedy."""
        if q is None:
            likeliest: list[float] = logits.float().softmax(-1).amax(-1).nan_to_num().tolist()
            return likeliest
        drawn: list[float] = q.gather(-1, ids).squeeze(-1).nan_to_num().tolist()
        return drawn

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.session.keep(rows)
        if self.lengths:
            self.lengths.keep(rows)

    def _pending(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """What the cache lacks of its rows: the last token, or two where the last draft was accepted whole.

        Rejected drafts are forgotten here. Every row gets as many tokens as the neediest: feeding a cached
        token again writes the same entries.
        """
        shortest = min(map(len, sequences))
        while (n := self._lacking(sequences)) > shortest:  # more than another row has: a part of it first
            begins = [
                min(length, len(sequence) - shortest)
                for sequence, length in zip(sequences, self.session.lengths, strict=True)
            ]
            parts = [
                sequence[begin : begin + shortest] for sequence, begin in zip(sequences, begins, strict=True)
            ]
            self.session.rollback(begins)
            self.session.extend(to_device(parts, self.session.model.device))
        self.session.rollback([len(sequence) - n for sequence in sequences])
        return to_device([sequence[-n:] for sequence in sequences], self.session.model.device)

    def _lacking(self, sequences: Sequence[Sequence[int]]) -> int:
        """Tokens that the neediest row's cache lacks, its last one included."""
        cached = zip(sequences, self.session.lengths, strict=True)
        return max(len(sequence) - min(length, len(sequence) - 1) for sequence, length in cached)

    def _likeliest(self, logits: Tensor) -> Tensor:
        """The greedy token of each row, an id of the target's."""
        kept = self.session.head.ids
        best = (logits[..., : self.width] if kept is None else logits).argmax(-1)
        return best if kept is None else kept[best]

    def _distribution(self, logits: Tensor) -> Tensor:
        """q over the target's ids: 0 where the drafter has no row."""
        q = probabilities(logits[..., : self.width] if self.session.head.ids is None else logits, self.sampling)
        if self.session.head.ids is not None:
            return q.new_zeros(*q.shape[:-1], self.width).index_copy_(-1, self.session.head.ids, q)
        return functional.pad(q, (0, self.width - q.shape[-1]))
