"""What a trimmed draft vocabulary costs: how much of the teacher's own text and probability it covers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specalign.losses.chunked import chunk_bytes
from specalign.models.heads import Head, common_heads, head_of
from specalign.training.scoring import Pair, columns_of
from specalign.training.validation import Validation


@dataclass(frozen=True)
class Coverage:
    """On the teacher's responses to the validation prompts."""

    n_ids: int
    """Size of the draft vocabulary."""
    tokens: float
    """Share of the response tokens that are in it."""
    mass: float
    """Mean sum_{v in vocabulary} p(v): no drafter with this head can reach a higher acceptance rate at
    temperature 1, since min(p, q) <= p inside and 0 outside."""

    def __str__(self) -> str:
        return (
            f"{self.n_ids:,} ids cover {self.tokens:.1%} of the teacher's validation tokens and {self.mass:.1%} of "
            f"its probability: alpha at temperature 1 is at most {self.mass:.3f}"
        )


@torch.no_grad()
def coverage(pair: Pair, validation: Validation) -> Coverage | None:
    """None where the drafter has the whole vocabulary."""
    ids = pair.draft_vocabulary
    if ids is None:
        return None
    head = head_of(pair.teacher)
    whole = common_heads(head, head, pair.n_tokens)[1]
    masses = [_mass(whole, states, ids) for _, states in validation.batches]
    found = [columns_of(layout.labels, pair.heads()[0]) >= 0 for layout, _ in validation.batches]
    return Coverage(len(ids), float(torch.cat(found).float().mean()), float(torch.cat(masses).mean()))


def _mass(head: Head, states: Tensor, ids: Tensor) -> Tensor:
    """[N] sum over ``ids`` of the softmax, a bounded number of positions at a time."""
    rows = max(1, chunk_bytes(head.weight.device) // (4 * head.width))
    return torch.cat([head(part).float().softmax(-1)[:, ids].sum(-1) for part in states.split(rows)])
