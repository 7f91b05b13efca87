"""Objectives for drafters: pure per-token functions of logits, in one table.

Every loss has the signature ``loss(student_logits [..., C], teacher_logits [..., C], *, labels=None, **hyper)
-> per-token loss [...]``, computed in float32 or better. p = teacher, q = student.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from specalign.errors import UserError, unknown
from specalign.losses.chunked import chunked_loss
from specalign.losses.cross_entropy import cross_entropy
from specalign.losses.jsd import jsd
from specalign.losses.kl import forward_kl, reverse_kl
from specalign.losses.rank_order import rank_order
from specalign.losses.reduction import reduce_tokens
from specalign.losses.tvd import overlap, tvd

Loss = Callable[..., Tensor]

LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "tvd": tvd,
    "rank_order": rank_order,
}

__all__ = ["LOSSES", "Objective", "chunked_loss", "objective", "overlap", "reduce_tokens"]


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses, called like one of them."""

    terms: tuple[tuple[str, float, Mapping[str, Any]], ...]
    """(name in LOSSES, weight, hyper-parameters)."""

    def __call__(
        self, student_logits: Tensor, teacher_logits: Tensor, *, labels: Tensor | None = None
    ) -> Tensor:
        losses = [
            weight * LOSSES[name](student_logits, teacher_logits, labels=labels, **hyper)
            for name, weight, hyper in self.terms
        ]
        return sum(losses[1:], start=losses[0])


def objective(weights: Mapping[str, float], hyper: Mapping[str, Any] | None = None) -> Objective:
    """Build the weighted sum of ``weights``; each of ``hyper`` goes to every term that has such a parameter.

    Raises UserError for an unknown loss, a negative weight, no weight at all, or a parameter that no term has.
    """
    if not weights:
        raise UserError(f"no objective given (choices: {', '.join(sorted(LOSSES))})")
    hyper = dict(hyper or {})
    terms, used = [], set()
    for name, weight in weights.items():
        if name not in LOSSES:
            raise unknown("objective", name, LOSSES)
        if not weight > 0:
            raise UserError(f"the weight of objective {name!r} must be positive, not {weight:g}")
        own = {key: value for key, value in hyper.items() if key in hyper_parameters(name)}
        used |= set(own)
        terms.append((name, weight, own))
    for key in set(hyper) - used:
        choices = {key for name in weights for key in hyper_parameters(name)}
        raise unknown(f"hyper-parameter of {' + '.join(weights)}", key, choices)
    return Objective(tuple(terms))


def hyper_parameters(name: str) -> dict[str, Any]:
    """The hyper-parameters of a loss and their defaults."""
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return {
        item.name: item.default
        for item in parameters
        if item.kind is item.KEYWORD_ONLY and item.name != "labels"
    }
