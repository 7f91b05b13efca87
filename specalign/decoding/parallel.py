"""Parallel drafting: mask tokens stand for what is not drafted yet, and one call drafts all tokens.

PARD (An et al. 2025, arXiv:2504.18583). Such a model is a plain checkpoint whose config.json names its mask token
(``models.mask_token``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.decoding.draft_length import DraftCosts, DraftLengths
from specalign.decoding.drafters import (
    Draft,
    Drafter,
    Drafting,
    Kind,
    MakeStepper,
    ModelDrafter,
    Undrafted,
    fills_context,
    nothing,
)
from specalign.decoding.eagle import EagleDrafter
from specalign.decoding.model_rows import ModelRows, confidence
from specalign.decoding.sampling import Sampling, sample
from specalign.decoding.session import Session
from specalign.decoding.stepper import Stepper, make_stepper
from specalign.models.eagle import EagleHead
from specalign.models.mask_token import Masks, masks_of


def drafter_of(model: PreTrainedModel, ids: Tensor | None = None) -> Drafter:
    """The drafter that a model is by its config, with a head over ``ids`` [V'] only if given."""
    if isinstance(model, EagleHead):
        return EagleDrafter(model)
    masks = masks_of(model.config)
    return ModelDrafter(model, ids) if masks is None else ParallelDrafter(model, masks, ids)


def drafts_at_once(drafter: Drafter | None) -> int:
    """Most tokens that one call of the drafter's model drafts: 1, or K of a parallel drafter."""
    return drafter.masks.most if isinstance(drafter, ParallelDrafter) else 1


@dataclass(frozen=True)
class ParallelDrafter:
    """A smaller model that drafts n tokens in one call: it reads the text's new tokens and n - 1 mask tokens.

    The logits at the last token of the text x and at each mask give q_1, ..., q_n. q_i is a function of x and i alone:
    tokens are drafted without regard to each other, so that given x and the drafted x_1, ..., x_{i-1}, token x_i is
    distributed as q_i. That is all that the rules of verification ask of a draft (``verification``): p_i, which does
    look at x_1, ..., x_{i-1}, is met as with any other drafter, and the output is the target's.
    """

    kind: ClassVar[Kind] = "model"
    reads: ClassVar[tuple[int, ...]] = ()
    model: PreTrainedModel
    masks: Masks
    draft_vocabulary: Tensor | None = None
    """[V'] ids that its head is trimmed to, ascending; None: all."""
    stepper: Stepper | None = None
    """The same model and vocabulary made ready (packed or compiled); None: eager."""
    adaptive: DraftCosts | None = None
    """Draft as many tokens as are expected to pay; None: always gamma, or ``masks.most`` where that is less."""

    @property
    def alone(self) -> Stepper:
        """What steps the model."""
        return self.stepper or make_stepper(self.model, ids=self.draft_vocabulary)

    def with_costs(self, costs: DraftCosts | None) -> ParallelDrafter:
        """The same with draft lengths by ``costs``, or of gamma tokens (None)."""
        return replace(self, adaptive=costs)

    def made_ready(self, make: MakeStepper) -> ParallelDrafter:
        """The same, packed or compiled."""
        return replace(self, stepper=make(self.model, self.draft_vocabulary))

    def start(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, target: Session
    ) -> Drafting:
        """Begin with the prompts, which are read later."""
        if fills_context(self.model, prompts):
            return Undrafted(self.model.device)
        rows = ModelRows(self.alone, prompts, n_new, sampling, target.head.width)
        lengths = None if self.adaptive is None else DraftLengths(self.adaptive, len(prompts))
        return _ParallelDrafting(rows, self.masks, lengths)


class _ParallelDrafting:
    """One request of a ParallelDrafter. Drafting gamma tokens never waits for the device."""

    def __init__(self, rows: ModelRows, masks: Masks, lengths: DraftLengths | None) -> None:
        self.rows, self.masks, self.lengths = rows, masks, lengths

    def ready(self) -> None:
        """Read the prompts."""
        self.rows.ready()

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """x_1 ~ q_1, ..., x_n ~ q_n, one forward call for all; nothing beyond the drafter's context."""
        limits = self._limits(sequences, limits)
        if self.lengths:
            self.lengths.settle(sequences)
            self.lengths.begin(limits)
        if not any(limits) or (self.lengths and not self.lengths.go_on()):
            return nothing(len(sequences), self.rows.device)
        kept = self.rows.ids
        logits = self._read(sequences, max(self.lengths.worth(limits) if self.lengths else limits))
        q = None if kept.sampling.greedy else kept.distribution(logits)
        ids = kept.likeliest(logits) if q is None else sample(q, generator)
        counts = self._counts(confidence(logits, q, ids)) if self.lengths else list(limits)
        n = max(counts)
        return Draft(ids[:, :n], counts, None if q is None else q[:, :n], logits.amax((1, 2)))

    def promise(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> list[float]:
        """By the mean acceptance so far: what a token will be trusted with is known once it is drafted."""
        assert self.lengths, "a drafter without costs promises nothing"
        return self.lengths.promise(self._limits(sequences, limits))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.rows.keep(rows)
        if self.lengths:
            self.lengths.keep(rows)

    def _limits(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> Sequence[int]:
        return self.rows.within_context(sequences, [min(limit, self.masks.most) for limit in limits])

    def _read(self, sequences: Sequence[Sequence[int]], n: int) -> Tensor:
        """Logits [B, n, V] of the n tokens after each sequence; the masks are forgotten: no token may see them."""
        pending = self.rows.pending(sequences)
        masks = pending.new_full((len(pending), n - 1), self.masks.token)
        logits = self.rows.session.extend(torch.cat([pending, masks], 1))
        self.rows.session.rollback([len(sequence) for sequence in sequences])
        return logits[:, pending.shape[1] - 1 :]

    def _counts(self, confidences: Tensor) -> list[int]:
        """How many of its drafted tokens [B, n] each row proposes.

        Whether a token is proposed is decided by those before it alone, though it is drafted already: what is decided
        by a token's own probability would change what it is distributed as.
        """
        assert self.lengths
        for column in confidences.T.tolist():
            self.lengths.drafted(column)
            if not self.lengths.go_on():
                break
        return self.lengths.counts
