"""The one place of a step that waits for the device: the rule on all rows at once, its outcome read once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from specalign.decoding.drafters import Draft
from specalign.decoding.sampling import Sampling, probabilities, sample
from specalign.decoding.transfer import to_device
from specalign.decoding.verification import Rule, greedy
from specalign.errors import UserError
from specalign.models.probe import not_finite


@dataclass(frozen=True)
class Outcome:
    """What the rule decided for one row."""

    drafted: list[int]
    n_accepted: int
    next_token: int
    overlap: list[float]
    """sum_v min(p, q) at each drafted position."""
    margins: list[float]
    """The largest of the target's logits minus the second at each scored position; empty unless asked for."""


@dataclass(frozen=True)
class Judge:
    """How drafts are judged."""

    sampling: Sampling
    rule: Rule
    generator: torch.Generator | None
    margins: bool = False
    names: tuple[str, str] = ("the target", "the drafter")
    """What errors call the two."""

    def __call__(self, logits: Tensor, draft: Draft, head_ids: Tensor | None = None) -> list[Outcome]:
        """Outcome of each row, of logits [B, n + 1, V] and a draft of n tokens; one read from the device.

        Raises UserError where the target's logits or those that the draft was made from are no numbers.
        """
        accepted, following, overlap = self._decide(logits, draft)
        if head_ids is not None:
            following = head_ids[following]
        peaks = logits.amax(-1).amax(-1, keepdim=True), _peak_of(draft)
        columns = [*peaks, accepted.unsqueeze(1), following.unsqueeze(1), draft.ids, overlap]
        if self.margins:
            best = logits.float().topk(2, dim=-1).values
            columns.append(best[..., 0] - best[..., 1])
        # float32 holds every token id below 2 ** 24
        table = torch.cat([column.float() for column in columns], 1).tolist()
        self._require_numbers(table, logits, draft)
        return [
            _outcome(line[2:], draft.ids.shape[1], count)
            for line, count in zip(table, draft.counts, strict=True)
        ]

    def _require_numbers(self, table: list[list[float]], logits: Tensor, draft: Draft) -> None:
        """A NaN would become token 0, or any token: it must not."""
        dtypes = logits.dtype, logits.dtype if draft.peak is None else draft.peak.dtype
        for place, (name, dtype) in enumerate(zip(self.names, dtypes, strict=True)):
            if not all(math.isfinite(line[place]) for line in table):
                raise UserError(not_finite(name, dtype))

    def _decide(self, logits: Tensor, draft: Draft) -> tuple[Tensor, Tensor, Tensor]:
        """Accepted tokens [B], the target's own next token [B], overlaps [B, n]."""
        n = draft.ids.shape[1]
        if n == 0:
            p = logits[:, 0]
            own = (
                p.argmax(-1)
                if self.sampling.greedy
                else sample(probabilities(p, self.sampling), self.generator)
            )
            return torch.zeros_like(own), own, draft.ids
        counts = to_device(draft.counts, logits.device)
        if self.sampling.greedy:
            best = logits.argmax(-1)
            return *greedy(best, draft.ids, counts), best[:, :n] == draft.ids
        p = probabilities(logits, self.sampling)
        q = functional.one_hot(draft.ids, p.shape[-1]).to(p.dtype) if draft.q is None else draft.q
        accepted, own = self.rule(p, q, draft.ids, self.generator, counts=counts)
        return accepted, own, torch.minimum(p[:, :n], q).sum(-1)


def _peak_of(draft: Draft) -> Tensor:
    """[B, 1] the drafter's largest logit of the step, NaN where any is; 0 where no model drafted."""
    if draft.peak is None:
        return torch.zeros(len(draft.counts), 1, device=draft.ids.device)
    return draft.peak.unsqueeze(1)


def _outcome(line: list[float], n: int, count: int) -> Outcome:
    """Take one row of the table apart: accepted, next token, n ids, n overlaps, margins."""
    ids, overlap, margins = line[2 : 2 + n], line[2 + n : 2 + 2 * n], line[2 + 2 * n :]
    return Outcome([int(token) for token in ids[:count]], int(line[0]), int(line[1]), overlap[:count], margins)
