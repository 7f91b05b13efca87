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
from specalign.decoding.draft_length import DraftCosts, DraftLengths, Origin, class_of
from specalign.decoding.drafters import Draft, Drafter, Drafting, Kind, MakeStepper, ModelDrafter, nothing
from specalign.decoding.eagle import EagleDrafter
from specalign.decoding.experience import Experience, Trials
from specalign.decoding.parallel import ParallelDrafter
from specalign.decoding.records import Step
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


def having_learned(drafter: Drafter, rows: Sequence[Sequence[Step]]) -> Drafter:
    """The drafter knowing the steps of these requests too; as it is where it is no hybrid."""
    return drafter.learned(rows) if isinstance(drafter, Hybrid) else drafter


def costs_of(drafter: Drafter) -> list[DraftCosts]:
    """The costs that it decides by, of a hybrid each part's; empty: it does not decide."""
    parts = drafter.parts if isinstance(drafter, Hybrid) else (drafter,)
    return [part.adaptive for part in parts if part.adaptive]


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
    their match, of a model by its mean acceptance; it begins, as r does, from what earlier requests showed where that
    is ``known``. The choice is made before a token is drafted, from the text so far and from earlier requests, so that
    verification stays lossless. Where no part pays, nothing is drafted; a part that was never chosen has not read the
    prompt.
    """

    kind: ClassVar[Kind] = "hybrid"
    parts: tuple[Drafter, ...]
    """Drafters with costs (``adaptive``), the first preferred where two promise the same."""
    known: Experience | None = None
    """What earlier requests showed; None: nothing."""

    def learned(self, rows: Sequence[Sequence[Step]]) -> Hybrid:
        """The same, knowing the steps of these requests too (``Generation.steps``), one after the other."""
        known = self.known or Experience.none(len(self.parts))
        for steps in rows:
            known = known.after(steps, costs_of(self))
        return replace(self, known=known)

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
        able = []
        for number, (part, drafting) in enumerate(zip(self.parts, started, strict=True)):
            if isinstance(drafting, Promising):  # not one whose context is full
                if drafting.lengths is None:
                    raise ValueError("a hybrid chooses by costs: give each of its drafters `adaptive`")
                model = part.kind == "model"
                able.append(_Part(number, drafting, drafting.lengths, tried=model, joined=not model))
        return (
            _HybridDrafting(able, len(prompts), n_new, target.model.device, self.known) if able else started[0]
        )


def drafting_models(drafter: Drafter | None) -> list[PreTrainedModel]:
    """The models that a drafter calls."""
    if isinstance(drafter, Hybrid):
        return [model for part in drafter.parts for model in drafting_models(part)]
    known = ModelDrafter | EagleDrafter | ParallelDrafter
    return [drafter.model] if isinstance(drafter, known) else []


@dataclass
class _Part:
    """One part's side of a request."""

    number: int
    """Among the hybrid's parts."""
    drafting: Promising
    lengths: DraftLengths
    tried: bool
    """Whether it may draft where it promises nothing: a model, of which nothing is learnt else. A copy is judged by the
    match that it follows."""
    joined: bool
    """Whether it has read the prompts, or has none to read."""


class _HybridDrafting:
    """One request of a Hybrid."""

    def __init__(
        self, parts: Sequence[_Part], n_rows: int, n_new: int, device: torch.device, known: Experience | None
    ) -> None:
        self.parts, self.n_new, self.device = list(parts), n_new, device
        self.chosen, self.prices = [0] * n_rows, [0.0] * n_rows
        self.trials = [Trials(known.spent, known.emitted) if known else Trials() for _ in range(n_rows)]
        self.first: list[int] = []
        """Length of each sequence before the first draft."""
        self.before: list[int] = []
        for first, second in pairwise(parts):
            second.lengths.share_rates(first.lengths)
        if known:
            for part in parts:
                part.lengths.know(known.parts[part.number])
            for row in parts[0].lengths.rows:
                row.rate.know(known.tokens, known.paid)

    def ready(self) -> None:
        """A part reads the prompts when it is first chosen."""

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """Each row's draft by its part; a part that no row chose makes no call."""
        self._settle(sequences)
        promises = zip(*(self._promises(part, sequences, limits) for part in self.parts), strict=True)
        chosen = [
            self._choice(row, promised, sequences[row], limits[row]) for row, promised in enumerate(promises)
        ]
        drafts = []
        for place, part in enumerate(self.parts):
            own = [limit if choice == place else 0 for limit, choice in zip(limits, chosen, strict=True)]
            drafts.append(
                part.drafting.draft(sequences, own, generator) if any(own) else nothing(len(own), self.device)
            )
            part.joined = part.joined or any(drafts[-1].counts)
        self.chosen = [choice or 0 for choice in chosen]
        draft = _merged(drafts)
        return replace(draft, origins=[self._origin(row, n) for row, n in enumerate(draft.counts)])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        for name in ("chosen", "prices", "trials", "first", "before"):
            own = getattr(self, name)
            setattr(self, name, [own[row] for row in rows] if own else own)
        for part in self.parts:
            part.drafting.keep(rows)

    def _settle(self, sequences: Sequence[Sequence[int]]) -> None:
        """The step before is over."""
        for place, part in enumerate(self.parts):
            part.lengths.settle(sequences, [choice == place for choice in self.chosen])
        lengths = [len(sequence) for sequence in sequences]
        self.first = self.first or lengths
        for row, (before, now) in enumerate(zip(self.before or lengths, lengths, strict=True)):
            if now > before:
                self.trials[row].settle(self.prices[row], now - before - 1, now - before)
        self.before, self.prices = lengths, [0.0] * len(lengths)

    def _promises(self, part: _Part, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> list[float]:
        """Each row's, less its share of reading the prompt where that is still to be done.

        Reading J plain steps costs r J tokens, shared by the steps that are left: about one for every r tokens.
        """
        gains = part.drafting.promise(sequences, limits)
        if part.joined:
            return gains
        shares = []
        for row, (length, sequence) in enumerate(zip(part.lengths.rows, sequences, strict=True)):
            left = max(1, self.n_new - len(sequence) + self.first[row])
            shares.append(length.rate.value**2 * length.costs.reading(len(sequence)) / left)
        return [max(0.0, gain - share) for gain, share in zip(gains, shares, strict=True)]

    def _choice(self, row: int, promised: Sequence[float], sequence: Sequence[int], limit: int) -> int | None:
        """The place of the part that drafts: the most promising, else one that is tried, else None."""
        for part in self.parts:
            part.lengths.rows[row].insists = False
        best = max(promised)
        if best > 0 or not limit:
            return promised.index(best) if best > 0 else None
        able = [place for place, part in enumerate(self.parts) if part.tried]
        if not able:
            return None
        place = min(able, key=lambda each: self.parts[each].lengths.rows[row].all.seen)
        part, length = self.parts[place], self.parts[place].lengths.rows[row]
        steps = length.costs.cost(1) - length.costs.cost(0)
        price = length.rate.value * (steps + (0 if part.joined else length.costs.reading(len(sequence))))
        if not self.trials[row].affords(price):
            return None
        length.insists, self.prices[row] = True, price
        return place

    def _origin(self, row: int, n_drafted: int) -> Origin:
        """Of a row's draft in the step that was just drafted."""
        if not n_drafted:
            self.prices[row] = 0.0
            return Origin(-1)
        part = self.parts[self.chosen[row]]
        confidences = part.lengths.rows[row].confidences[:n_drafted]
        return Origin(part.number, tuple(map(class_of, confidences)), self.prices[row])


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
