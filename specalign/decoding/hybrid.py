"""Two drafters as one: each row's draft comes from the one that promises more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from specalign.decoding.copying import SuffixLookup
from specalign.decoding.draft_length import DraftCosts, DraftLengths
from specalign.decoding.drafters import Draft, Drafter, Drafting, Kind, MakeStepper, ModelDrafter, nothing
from specalign.decoding.eagle import EagleDrafter
from specalign.decoding.parallel import ParallelDrafter
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session
from specalign.decoding.stepper import Stepper
from specalign.decoding.suffix_index import SuffixIndex


def with_corpora(drafter: Drafter, corpora: Sequence[SuffixIndex]) -> Drafter:
    """The drafter with these texts to copy from, where it, or a part of it, copies by a suffix index."""
    if isinstance(drafter, SuffixLookup):
        return replace(drafter, corpora=tuple(corpora))
    if isinstance(drafter, Hybrid):
        return replace(drafter, parts=tuple(with_corpora(part, corpora) for part in drafter.parts))
    return drafter


@runtime_checkable
class Promising(Drafting, Protocol):
    """A drafter's side of one request that says beforehand what its draft is worth."""

    lengths: DraftLengths | None
    """None: it has no costs, and cannot say."""

    def promise(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> list[float]:
        """Tokens that each row's draft is expected to gain beyond its cost, 0 where none pays."""


@dataclass(frozen=True)
class Hybrid:
    """Draft by whichever part promises more, row by row and step by step.

    A part's draft of n tokens is worth S_1 + ... + S_n - r (C_n - C_0) tokens (``draft_length``): its expected accepted
    tokens less what its cost would have emitted otherwise. S is learnt within the request: of copies by the length of
    their match, of a model by its mean acceptance. The choice is made before a token is drafted and from the text so
    far alone, so that verification stays lossless. Where no part pays, nothing is drafted.
    """

    kind: ClassVar[Kind] = "hybrid"
    parts: tuple[Drafter, ...]
    """Drafters with costs (``adaptive``), the first preferred where two promise the same."""

    @property
    def reads(self) -> tuple[int, ...]:
        """What any of its parts reads."""
        return tuple(sorted({layer for part in self.parts for layer in part.reads}))

    @property
    def adaptive(self) -> DraftCosts | None:
        """Those of its first part: it always decides."""
        return self.parts[0].adaptive

    @property
    def alone(self) -> Stepper | None:
        """Several drafters have no one model."""
        return None

    def with_costs(self, costs: DraftCosts | None) -> Hybrid:
        """As it is: each part has costs of its own."""
        return self

    def made_ready(self, make: MakeStepper) -> Hybrid:
        """The same with its parts made ready."""
        return replace(self, parts=tuple(part.made_ready(make) for part in self.parts))

    def start(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, target: Session
    ) -> Drafting:
        """Begin with every part. Raises ValueError for a part without costs."""
        started = [part.start(prompts, n_new, sampling, target) for part in self.parts]
        able = [part for part in started if isinstance(part, Promising)]  # not one whose context is full
        if any(part.lengths is None for part in able):
            raise ValueError("a hybrid chooses by costs: give each of its drafters `adaptive`")
        return _HybridDrafting(able, len(prompts), target.model.device) if able else started[0]


def drafting_models(drafter: Drafter | None) -> list[PreTrainedModel]:
    """The models that a drafter calls."""
    if isinstance(drafter, Hybrid):
        return [model for part in drafter.parts for model in drafting_models(part)]
    known = ModelDrafter | EagleDrafter | ParallelDrafter
    return [drafter.model] if isinstance(drafter, known) else []


class _HybridDrafting:
    """One request of a Hybrid."""

    def __init__(self, parts: Sequence[Promising], n_rows: int, device: torch.device) -> None:
        self.parts, self.device = list(parts), device
        self.chosen = [0] * n_rows
        lengths = [part.lengths for part in self.parts if part.lengths]
        self.lengths = lengths
        for first, second in pairwise(lengths):
            second.share_rates(first)

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """Each row's draft by its part; a part that no row chose makes no call."""
        for place, lengths in enumerate(self.lengths):
            lengths.settle(sequences, [choice == place for choice in self.chosen])
        promises = list(zip(*(part.promise(sequences, limits) for part in self.parts), strict=True))
        self.chosen = [row.index(max(row)) for row in promises]
        drafts = []
        for place, part in enumerate(self.parts):
            own = [
                limit if choice == place and max(row) > 0 else 0
                for limit, choice, row in zip(limits, self.chosen, promises, strict=True)
            ]
            drafts.append(part.draft(sequences, own, generator) if any(own) else nothing(len(own), self.device))
        return _merged(drafts)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.chosen = [self.chosen[row] for row in rows]
        for part in self.parts:
            part.keep(rows)


def _merged(drafts: Sequence[Draft]) -> Draft:
    """Drafts of which at most one is not empty in each row, as one."""
    full = [draft for draft in drafts if any(draft.counts)]
    if len(full) < 2:
        return full[0] if full else drafts[0]
    width = max(draft.ids.shape[1] for draft in full)
    counts = [sum(row) for row in zip(*(draft.counts for draft in full), strict=True)]
    ids = torch.zeros_like(full[0].ids[:, :1]).repeat(1, width)
    n_ids = next((draft.q.shape[-1] for draft in full if draft.q is not None), 0)
    distributions = None if not n_ids else torch.zeros(*ids.shape, n_ids, device=ids.device)
    for draft in full:
        rows = [row for row, count in enumerate(draft.counts) if count]
        n = draft.ids.shape[1]
        ids[rows, :n] = draft.ids[rows]
        if distributions is not None:
            distributions[rows, :n] = _q(draft, n_ids)[rows].to(distributions.dtype)
    peaks = [draft.peak.float() for draft in full if draft.peak is not None]
    return Draft(ids, counts, distributions, torch.stack(peaks).amax(0) if peaks else None)


def _q(draft: Draft, n_ids: int) -> Tensor:
    """What the draft was sampled from; one-hot where it was certain."""
    return functional.one_hot(draft.ids, n_ids) if draft.q is None else draft.q
