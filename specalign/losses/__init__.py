"""Objectives for drafters: pure per-token functions of logits, in one table.

Every loss has the signature ``loss(student_logits [..., C], teacher_logits [..., C], *, labels=None, **hyper)
-> per-token loss [...]``, computed in float32 or better. p = teacher, q = student.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specalign.errors import UserError, unknown
from specalign.losses.accepted_length import (
    accepted_length,
    window_overlap,
    window_span,
    window_sum,
)
from specalign.losses.chunked import chunked_loss
from specalign.losses.cross_entropy import cross_entropy
from specalign.losses.jsd import jsd
from specalign.losses.kl import forward_kl, reverse_kl
from specalign.losses.lk import lk_alpha, lk_hybrid
from specalign.losses.rank_order import rank_order
from specalign.losses.reduction import reduce_tokens
from specalign.losses.selection import select_tokens
from specalign.losses.skew import skew_forward_kl, skew_reverse_kl
from specalign.losses.tvd import argmax_agreement, overlap, tvd

Loss = Callable[..., Tensor]

LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "tvd": tvd,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "lk_alpha": lk_alpha,
    "lk_hybrid": lk_hybrid,
    "accepted_length": accepted_length,
    "rank_order": rank_order,
}


@dataclass(frozen=True)
class Windows:
    """A loss of a token that depends on the positions after it, in two steps."""

    column: Callable[..., Tensor]
    """(student_logits, teacher_logits, **hyper) -> [...]: what each position gives, and all that needs logits."""
    gather: Callable[..., Tensor]
    """([...], sequence_ids=..., **hyper) -> the per-token loss [...]."""
    span: Callable[..., int]
    """(**hyper) -> number of positions, a token's own included, on which its loss depends."""


@dataclass(frozen=True)
class Needs:
    """What a loss looks at besides the student's logits at its own position."""

    teacher: bool = True
    """The teacher's logits there; else labels alone."""
    windows: Windows | None = None
    """Positions after it; None: none."""


NEEDS: dict[str, Needs] = dict.fromkeys(LOSSES, Needs()) | {
    "cross_entropy": Needs(teacher=False),
    "accepted_length": Needs(windows=Windows(window_overlap, window_sum, window_span)),
}

__all__ = [
    "LOSSES",
    "NEEDS",
    "Objective",
    "argmax_agreement",
    "chunked_loss",
    "hyper_parameters",
    "objective",
    "overlap",
    "reduce_tokens",
]

_DATA = ("labels", "sequence_ids")
"""Keyword arguments of losses that are no hyper-parameters."""


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses, called like one of them.

    It works in two steps, so that it can run over chunks of positions: ``measure`` needs logits and is
    independent for each token; ``combine`` needs whole sequences, but no logits.
    """

    terms: tuple[tuple[str, float, Mapping[str, Any]], ...]
    """(name in LOSSES, weight, hyper-parameters)."""
    teacher_temperature: float = 1.0
    """The teacher's logits are divided by this first: below 1 the target is sharper than the teacher."""
    keep: float = 1.0
    """Share of the tokens that is trained on, those with the largest reducible loss (see select_tokens)."""
    own: Mapping[str, Loss] = field(default_factory=dict)
    """Losses of these terms that are not in the table: local to a token, with the teacher's logits."""

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        *,
        labels: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        reference_loss: Tensor | None = None,
    ) -> Tensor:
        """Per-token loss [...] from logits [..., C].

        ``sequence_ids`` [...] part packed sequences (see accepted_length.window_sum); ``reference_loss`` [...]
        is the same objective, with keep = 1, of the reference drafter.
        """
        columns = self.measure(student_logits, teacher_logits, labels=labels)
        return self.combine(columns, sequence_ids=sequence_ids, reference_loss=reference_loss)

    def measure(
        self, student_logits: Tensor, teacher_logits: Tensor | None, *, labels: Tensor | None = None
    ) -> Tensor:
        """[..., K]: the weighted sum of the losses that are local to a token, then an overlap for each other.

        The first column is missing where no loss is local.
        """
        if teacher_logits is not None and self.teacher_temperature != 1:
            teacher_logits = teacher_logits / self.teacher_temperature
        columns = [
            weight * loss_of(name, self.own)(student_logits, teacher_logits, labels=labels, **hyper)
            for name, weight, hyper in self._local_terms
        ]
        columns = [sum(columns[1:], start=columns[0])] if columns else []
        for windows, _, hyper in self._window_terms:
            columns.append(windows.column(student_logits, teacher_logits, **hyper))
        return torch.stack(columns, dim=-1)

    def combine(
        self, columns: Tensor, *, sequence_ids: Tensor | None = None, reference_loss: Tensor | None = None
    ) -> Tensor:
        """From what ``measure`` gives, [..., K], to the per-token loss [...]."""
        parts = list(columns.unbind(-1))
        terms = self._window_terms
        for k, (windows, weight, hyper) in enumerate(terms, start=len(parts) - len(terms)):
            parts[k] = weight * windows.gather(parts[k], sequence_ids=sequence_ids, **hyper)
        return select_tokens(sum(parts[1:], start=parts[0]), reference_loss, self.keep)

    @property
    def reads_labels(self) -> bool:
        """Whether labels may be looked at: by losses that need no teacher, and perhaps by those beside the table."""
        return any(name in self.own or not needs_of(name).teacher for name, _, _ in self.terms)

    @property
    def horizon(self) -> int | None:
        """Number of positions, its own included, on which a token's loss depends; None: on all tokens."""
        return (
            max([1, *(windows.span(**hyper) for windows, _, hyper in self._window_terms)])
            if self.keep == 1
            else None
        )

    @property
    def n_columns(self) -> int:
        """K of ``measure``."""
        return bool(self._local_terms) + len(self._window_terms)

    @property
    def _local_terms(self) -> list[tuple[str, float, Mapping[str, Any]]]:
        return [term for term in self.terms if needs_of(term[0]).windows is None]

    @property
    def _window_terms(self) -> list[tuple[Windows, float, Mapping[str, Any]]]:
        found = [(needs_of(name).windows, weight, hyper) for name, weight, hyper in self.terms]
        return [(windows, weight, hyper) for windows, weight, hyper in found if windows is not None]

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's logits are looked at."""
        return any(needs_of(name).teacher for name, _, _ in self.terms)


def objective(
    weights: Mapping[str, float],
    hyper: Mapping[str, Any] | None = None,
    *,
    teacher_temperature: float = 1.0,
    keep: float = 1.0,
    own: Mapping[str, Loss] | None = None,
) -> Objective:
    """Build the weighted sum of ``weights``; each of ``hyper`` goes to every term that has such a parameter.

    ``own`` are losses beside the table, by name: like those in it, local to a token and with a teacher.
    Raises UserError for an unknown loss, a weight that is not positive, no weight at all, a parameter that no
    term has, or a value out of range (found by trying the objective on two tokens).
    """
    own = own or {}
    if not weights:
        raise UserError(f"no objective given (choices: {', '.join(sorted(LOSSES))})")
    hyper = dict(hyper or {})
    terms, used = [], set()
    for name, weight in weights.items():
        if name not in LOSSES and name not in own:
            raise unknown("objective", name, [*LOSSES, *own])
        if not weight > 0:
            raise UserError(f"the weight of objective {name!r} must be positive, not {weight:g}")
        chosen = {key: value for key, value in hyper.items() if key in hyper_parameters(name, own)}
        used |= set(chosen)
        terms.append((name, weight, chosen))
    for key in set(hyper) - used:
        choices = {key for name in weights for key in hyper_parameters(name, own)}
        raise unknown(f"hyper-parameter of {' + '.join(weights)}", key, choices)
    if not teacher_temperature > 0:
        raise UserError(f"teacher_temperature must be positive, not {teacher_temperature:g}")
    built = Objective(tuple(terms), teacher_temperature, keep, own)
    trial = torch.zeros(2, 3)
    try:
        built(trial, trial, labels=torch.zeros(2, dtype=torch.long))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # torch: too large to allocate
        raise UserError(f"objective {' + '.join(weights)}: {error}") from None
    return built


def loss_of(name: str, own: Mapping[str, Loss]) -> Loss:
    """The loss of a term: one of the table, else of ``own``."""
    return LOSSES[name] if name in LOSSES else own[name]


def needs_of(name: str) -> Needs:
    """What a term's loss looks at; one beside the table at the teacher's logits, and at its own position."""
    return NEEDS.get(name, Needs())


def hyper_parameters(name: str, own: Mapping[str, Loss] | None = None) -> dict[str, Any]:
    """The hyper-parameters of a loss and their defaults (``Parameter.empty`` where there is none)."""
    parameters = inspect.signature(loss_of(name, own or {})).parameters.values()
    return {
        item.name: item.default
        for item in parameters
        if item.kind is item.KEYWORD_ONLY and item.name not in _DATA
    }
