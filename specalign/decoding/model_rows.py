"""A drafting model's side of a batch: what its cache lacks of each row, and what its logits say of the target's ids."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from specalign.decoding.sampling import Sampling, probabilities
from specalign.decoding.session import Session
from specalign.decoding.stepper import Stepper
from specalign.decoding.transfer import to_device
from specalign.models.heads import Head
from specalign.models.properties import context_limit


class ModelRows:
    """The rows that a model drafts for, in whichever order it drafts their tokens."""

    def __init__(
        self, stepper: Stepper, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, width: int
    ) -> None:
        self.stepper, self.prompts = stepper, list(prompts)
        self.most = max(map(len, prompts)) + n_new
        """Positions that there is room for."""
        if stepper.compiled:
            stepper.compiled.require(len(prompts), self.most)
        self.begun: Session | None = None
        self.ids = DraftIds(stepper.head, sampling, width)
        self.context = context_limit(stepper.model)
        self.device = stepper.device

    @property
    def session(self) -> Session:
        """The model's; it reads the prompts when it is first asked for."""
        if self.begun is None:
            self.begun = Session.start(self.stepper, self.prompts, self.most - max(map(len, self.prompts)))
        return self.begun

    def ready(self) -> None:
        """Read the prompts, unless they are."""
        _ = self.session

    def within_context(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> Sequence[int]:
        """``limits`` without what lies beyond the model's context."""
        return within(self.context, sequences, limits)

    def pending(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """[B, n] what the cache lacks of its rows: the last token, and before it what was accepted but not read.

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

    def begin(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, V'] after each sequence."""
        return self.follow(self.pending(sequences))

    def follow(self, ids: Tensor) -> Tensor:
        """Logits [B, V'] after ids [B, n]."""
        return self.session.extend(ids)[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.prompts = [self.prompts[row] for row in rows]
        if self.begun:
            self.begun.keep(rows)

    def _lacking(self, sequences: Sequence[Sequence[int]]) -> int:
        """Tokens that the neediest row's cache lacks, its last one included."""
        cached = zip(sequences, self.session.lengths, strict=True)
        return max(len(sequence) - min(length, len(sequence) - 1) for sequence, length in cached)


def within(context: int | None, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> Sequence[int]:
    """Of ``limits`` what a context has room for after each sequence; None: there is no limit."""
    if context is None:
        return limits
    return [max(0, min(n, context - len(text))) for n, text in zip(limits, sequences, strict=True)]


class DraftIds:
    """From a drafter's logits [..., V'] to ids of the target's, ``width`` of them; its head may have but some."""

    def __init__(self, head: Head, sampling: Sampling, width: int) -> None:
        self.kept, self.sampling, self.width = head.ids, sampling, width

    def likeliest(self, logits: Tensor) -> Tensor:
        """[...] the greedy token."""
        best = (logits[..., : self.width] if self.kept is None else logits).argmax(-1)
        return best if self.kept is None else self.kept[best]

    def distribution(self, logits: Tensor) -> Tensor:
        """[..., width] q: 0 where the drafter has no row."""
        q = probabilities(logits[..., : self.width] if self.kept is None else logits, self.sampling)
        if self.kept is not None:
            return q.new_zeros(*q.shape[:-1], self.width).index_copy_(-1, self.kept, q)
        return functional.pad(q, (0, self.width - q.shape[-1]))


def confidence(logits: Tensor, q: Tensor | None, ids: Tensor) -> Tensor:
    """[...] the drafter's probability of its tokens ``ids`` [...], from its logits [..., V'] or from q [..., V].

    At temperature 1 where decoding is greedy, which has no q. 0 where that is NaN.
    """
    if q is None:
        return logits.float().softmax(-1).amax(-1).nan_to_num()
    return q.gather(-1, ids.unsqueeze(-1)).squeeze(-1).nan_to_num()
