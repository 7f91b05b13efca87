"""Drafts without a model: copies of what followed the same words before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch

from specalign.decoding.draft_length import DraftCosts, DraftLengths
from specalign.decoding.drafters import Draft, Drafter, Drafting, Kind, MakeStepper
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session
from specalign.decoding.stepper import Stepper
from specalign.decoding.suffix_index import Match, SuffixIndex
from specalign.decoding.transfer import to_device

SEPARATOR = -2
"""No token: between an encoder's prompt and what the decoder writes."""
BREAK = -3
"""No token: between texts of a corpus. No request's text has it, and no copy goes over it."""
UNKNOWN = 0.5
"""Confidence of a copy of which nothing is known."""
TRUST = ((1, 0.3), (2, 0.5), (4, 0.7))
"""(longest matched context in tokens, trust in the token that follows): near the share of a small model's greedy tokens
that such a copy met (0.2, 0.5, 0.6 to 0.7), each in a class of its own."""
TRUST_BEYOND = 0.9
"""In the token that follows a longer match (met: 0.8 to 0.9)."""
ASSUMED = DraftCosts(0.0, (1.0, 1.1))
"""Where nothing was measured: a copy costs nothing, and each further position of a target's call a tenth of a step."""


Copies = list[tuple[list[int], list[float]]]
"""Of each row the copied tokens, and how far each is trusted."""


class Copier(Protocol):
    """Copies for one row of one request."""

    def __call__(self, sequence: Sequence[int], limit: int) -> tuple[list[int], list[float]]:
        """Up to ``limit`` tokens to follow ``sequence``, and how far each is trusted, 0 to 1."""


@dataclass(frozen=True)
class PromptLookup:
    """Copy what followed the latest earlier occurrence of the last n-gram (Saxena 2023, prompt lookup)."""

    kind: ClassVar[Kind] = "lookup"
    reads: ClassVar[tuple[int, ...]] = ()
    max_ngram: int = 3
    """Longest n-gram to look for, in tokens; shorter ones are tried after it."""
    adaptive: DraftCosts | None = None
    """Copy no more than is expected to pay; None: gamma tokens."""

    @property
    def alone(self) -> Stepper | None:
        """No model drafts."""
        return None

    def with_costs(self, costs: DraftCosts | None) -> PromptLookup:
        """The same with draft lengths by ``costs``, or of gamma tokens (None)."""
        return replace(self, adaptive=costs)

    def made_ready(self, make: MakeStepper) -> PromptLookup:
        """As it is: there is no model."""
        return self

    def start(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, target: Session
    ) -> Drafting:
        """Remember the prompts: an encoder-decoder model's decoder sequence does not contain them."""
        copiers = [_ngram_copier(list(prompt), self.max_ngram) for prompt in prompts]
        return _CopyDrafting(copiers, self.adaptive, target.model.device)


@dataclass(frozen=True)
class SuffixLookup:
    """Copy what most often followed the longest earlier occurrence of the text's end.

    The idea of suffix decoding (Oliaro et al. 2024, arXiv:2411.04975) on a suffix automaton, whose cost a token does
    not depend on the length of the text. How much is copied follows from the length of the match: the longer the
    context that a token follows, the further it is trusted, as the request's own copies showed.
    """

    kind: ClassVar[Kind] = "lookup"
    reads: ClassVar[tuple[int, ...]] = ()
    adaptive: DraftCosts | None = ASSUMED
    """Copy no more than is expected to pay, by what verification costs; None: gamma tokens."""
    corpora: tuple[SuffixIndex, ...] = ()
    """More texts to copy from (documents, earlier outputs), searched besides the prompt and the output so far, never
    changed; where several match equally far, the request's own text is copied, else the first of them."""

    @property
    def alone(self) -> Stepper | None:
        """No model drafts."""
        return None

    def with_costs(self, costs: DraftCosts | None) -> SuffixLookup:
        """The same with draft lengths by ``costs``, or of gamma tokens (None)."""
        return replace(self, adaptive=costs)

    def made_ready(self, make: MakeStepper) -> SuffixLookup:
        """As it is: there is no model."""
        return self

    def start(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, target: Session
    ) -> Drafting:
        """Index the prompts."""
        copiers = [_SuffixCopier(list(prompt), self.corpora) for prompt in prompts]
        return _CopyDrafting(copiers, self.adaptive, target.model.device)


class _CopyDrafting:
    """One request of a drafter that copies."""

    def __init__(self, copiers: Sequence[Copier], costs: DraftCosts | None, device: torch.device) -> None:
        self.copiers, self.device = list(copiers), device
        self.lengths = None if costs is None else DraftLengths(costs, len(self.copiers))
        self.found: Copies = []
        """The copies that a promise was made of, until they are drafted or looked for again."""

    def ready(self) -> None:
        """The prompts are indexed already."""

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """Copies; a row without an earlier occurrence proposes nothing."""
        copies = self.found or self._copies(sequences, limits)
        self.found = []
        if self.lengths:
            self.lengths.settle(sequences)
            self.lengths.begin(limits)
            copies = [self._paying(place, *copy) for place, copy in enumerate(copies)]
        kept = [ids[:limit] for (ids, _), limit in zip(copies, limits, strict=True)]
        width = max(map(len, kept))
        padded = [[*ids, *[0] * (width - len(ids))] for ids in kept]
        return Draft(to_device(padded, self.device), [len(ids) for ids in kept], None)

    def promise(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> list[float]:
        """By what its copies are trusted with."""
        assert self.lengths, "a drafter without costs promises nothing"
        self.found = self._copies(sequences, limits)
        return [
            row.promise(trust, min(len(trust), limit))[0]
            for row, (_, trust), limit in zip(self.lengths.rows, self.found, limits, strict=True)
        ]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.copiers = [self.copiers[row] for row in rows]
        if self.lengths:
            self.lengths.keep(rows)

    def _copies(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> Copies:
        return [
            copier(sequence, limit)
            for copier, sequence, limit in zip(self.copiers, sequences, limits, strict=True)
        ]

    def _paying(self, place: int, ids: list[int], trust: list[float]) -> tuple[list[int], list[float]]:
        """The part of a copy that is expected to pay, remembered as drafted."""
        assert self.lengths
        row = self.lengths.rows[place]
        _, n = row.promise(trust, min(len(ids), row.limit))
        for confidence in trust[:n]:
            row.drafted(confidence)
        return ids[:n], trust[:n]


def _ngram_copier(prompt: list[int], max_ngram: int) -> Copier:
    def copier(sequence: Sequence[int], limit: int) -> tuple[list[int], list[float]]:
        text = list(sequence)
        found = lookup(text if text[: len(prompt)] == prompt else [*prompt, *text], max_ngram)[:limit]
        return found, [UNKNOWN] * len(found)

    return copier


class _SuffixCopier:
    """The index of one row's text, and where the text's end stands in each corpus."""

    def __init__(self, prompt: list[int], corpora: Sequence[SuffixIndex]) -> None:
        self.prompt, self.corpora = prompt, corpora
        self.index, self.matches = SuffixIndex(), [Match(0, 0)] * len(corpora)
        self.n_read = 0
        self._read(prompt)

    def __call__(self, sequence: Sequence[int], limit: int) -> tuple[list[int], list[float]]:
        """The continuation of the longest match."""
        if not self.n_read:
            self.n_read = self._read_before(sequence)
        self._read(sequence[self.n_read :])
        self.n_read = len(sequence)
        found = [(self.index, self.index.match), *zip(self.corpora, self.matches, strict=True)]
        index, match = max(found, key=lambda each: each[1].length)  # of equals the first
        ids: list[int] = []
        trust: list[float] = []
        for token, length in index.continuation(match):
            if len(ids) == limit or token < 0:
                break
            ids.append(token)
            trust.append(confidence(length))
        return ids, trust

    def _read_before(self, sequence: Sequence[int]) -> int:
        """Tokens of the first sequence that are indexed already: the prompt, of a decoder-only model."""
        if list(sequence[: len(self.prompt)]) == self.prompt:
            return len(self.prompt)
        self._read([SEPARATOR])
        return 0

    def _read(self, tokens: Sequence[int]) -> None:
        self.index.extend(tokens)
        for token in tokens if self.corpora else ():
            self.matches = [
                corpus.advance(match, token) for corpus, match in zip(self.corpora, self.matches, strict=True)
            ]


def confidence(length: int) -> float:
    """How far a token is trusted that follows a match of ``length`` tokens, before anything was seen."""
    return next((trust for most, trust in TRUST if length <= most), TRUST_BEYOND)


def lookup(text: Sequence[int], max_ngram: int) -> list[int]:
    """What followed the latest earlier occurrence of the longest suffix of at most ``max_ngram`` tokens."""
    text = list(text)
    for n in range(min(max_ngram, len(text) - 1), 0, -1):
        suffix = text[-n:]
        for start in range(len(text) - n - 1, -1, -1):
            if text[start : start + n] == suffix:
                return text[start + n :]
    return []


WITHOUT_MODEL: dict[str, Drafter] = {"prompt_lookup": PromptLookup(), "suffix_lookup": SuffixLookup()}
"""Name -> drafter, of those that need no model."""
