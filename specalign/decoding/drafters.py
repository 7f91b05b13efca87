"""Where drafts come from: a smaller model, or the text so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from specalign.decoding.sampling import Sampling, probabilities, sample
from specalign.decoding.session import Session, room
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
    """[B, n, V]: what each was sampled from; None where all were certain (one-hot)."""


class Drafting(Protocol):
    """The drafter's side of one request."""

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """Propose up to ``limits[row]`` tokens to follow each sequence."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""


class Drafter(Protocol):
    """A drafter; it keeps nothing from one request to the next."""

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

    model: PreTrainedModel
    draft_vocabulary: Tensor | None = None
    """[V'] ids that its head is trimmed to, ascending; None: all."""
    stepper: Stepper | None = None
    """The same model and vocabulary made ready (packed or compiled); None: eager."""

    @property
    def ready(self) -> Stepper:
        """What steps the model."""
        return self.stepper or make_stepper(self.model, ids=self.draft_vocabulary)

    def start(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, target: Session
    ) -> Drafting:
        """Prefill the drafter."""
        if (room(self.model, prompts) or n_new) < 1:
            return Undrafted(self.model.device)
        session = Session.start(self.ready, prompts, n_new)
        return _ModelDrafting(session, sampling, target.head.width)


class _ModelDrafting:
    """One request of a ModelDrafter. Drafting never waits for the device."""

    def __init__(self, session: Session, sampling: Sampling, width: int) -> None:
        self.session, self.sampling, self.width = session, sampling, width
        self.context = context_limit(session.model)

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """x_1, ..., x_n ~ q, one forward call each; nothing beyond the drafter's context."""
        if self.context is not None:
            limits = [
                max(0, min(n, self.context - len(text))) for n, text in zip(limits, sequences, strict=True)
            ]
        if not any(limits):
            return nothing(len(sequences), self.session.model.device)
        pending = self._pending(sequences)
        ids, distributions = [], []
        for _ in range(max(limits)):
            q = self._distribution(self.session.extend(pending)[:, -1])
            pending = (q.argmax(-1) if self.sampling.greedy else sample(q, generator)).unsqueeze(1)
            ids.append(pending)
            distributions.append(q)
        return Draft(torch.cat(ids, 1), list(limits), torch.stack(distributions, 1))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.session.keep(rows)

    def _pending(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """What the cache lacks of its rows: the last token, or two where the last draft was accepted whole.

        Rejected drafts are forgotten here. Every row gets as many tokens as the neediest: feeding a cached
        token again writes the same entries.
        """
        cached = zip(sequences, self.session.lengths, strict=True)
        n = max(len(sequence) - min(length, len(sequence) - 1) for sequence, length in cached)
        self.session.rollback([len(sequence) - n for sequence in sequences])
        return to_device([sequence[-n:] for sequence in sequences], self.session.model.device)

    def _distribution(self, logits: Tensor) -> Tensor:
        """q over the target's ids: 0 where the drafter has no row."""
        q = probabilities(logits[..., : self.width] if self.session.head.ids is None else logits, self.sampling)
        if self.session.head.ids is not None:
            return q.new_zeros(*q.shape[:-1], self.width).index_copy_(-1, self.session.head.ids, q)
        return functional.pad(q, (0, self.width - q.shape[-1]))


@dataclass(frozen=True)
class PromptLookup:
    """Copy what followed the latest earlier occurrence of the last n-gram (Saxena 2023, prompt lookup)."""

    max_ngram: int = 3
    """Longest n-gram to look for, in tokens; shorter ones are tried after it."""

    def start(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, target: Session
    ) -> Drafting:
        """Remember the prompts: an encoder-decoder model's decoder sequence does not contain them."""
        return _LookupDrafting([list(prompt) for prompt in prompts], self.max_ngram, target.model.device)


class _LookupDrafting:
    """One request of a PromptLookup."""

    def __init__(self, prompts: list[list[int]], max_ngram: int, device: torch.device) -> None:
        self.prompts, self.max_ngram, self.device = prompts, max_ngram, device

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """Copies; a row without an earlier occurrence proposes nothing."""
        texts = [
            sequence if list(sequence[: len(prompt)]) == prompt else [*prompt, *sequence]
            for prompt, sequence in zip(self.prompts, sequences, strict=True)
        ]
        found = [lookup(text, self.max_ngram)[:limit] for text, limit in zip(texts, limits, strict=True)]
        width = max(map(len, found))
        padded = [[*row, *[0] * (width - len(row))] for row in found]
        return Draft(to_device(padded, self.device), [len(row) for row in found], None)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.prompts = [self.prompts[row] for row in rows]


def lookup(text: Sequence[int], max_ngram: int) -> list[int]:
    """What followed the latest earlier occurrence of the longest suffix of at most ``max_ngram`` tokens."""
    text = list(text)
    for n in range(min(max_ngram, len(text) - 1), 0, -1):
        suffix = text[-n:]
        for start in range(len(text) - n - 1, -1, -1):
            if text[start : start + n] == suffix:
                return text[start + n :]
    return []
