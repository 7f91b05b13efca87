"""The teacher's hidden states along fixed responses, computed once for all epochs, methods and seeds of a command.

Scoring is most of a step's cost, and of a fixed response it never changes. What is kept is the state that the
head is applied to: d numbers a token, exact, where whole distributions would be V numbers and top-k ones biased.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.training.rows import Layout, Row, lay_out
from specalign.training.scoring import states


class TeacherStates:
    """Scores rows with a frozen teacher, those of fixed responses at most once.

    Such a row is scored on its own, so that its states do not depend on which batch asks for them first: a run
    that goes on from a checkpoint repeats an uninterrupted one bit by bit.
    """

    def __init__(self, teacher: PreTrainedModel) -> None:
        self.teacher = teacher
        self.kept: dict[Row, Tensor] = {}

    @torch.no_grad()
    def of(self, rows: Sequence[Row], *, packed: bool) -> Tensor:
        """[N, d] at the predictors of ``lay_out(rows, packed=packed)``, in its order."""
        fresh = [row for row in rows if not is_fixed(row)]
        computed = iter(self._score(fresh, packed)) if fresh else iter(())
        return torch.cat([self._fixed(row) if is_fixed(row) else next(computed) for row in rows])

    def _fixed(self, row: Row) -> Tensor:
        if row not in self.kept:
            (self.kept[row],) = self._score([row], packed=True)
        return self.kept[row]

    def _score(self, rows: Sequence[Row], packed: bool) -> tuple[Tensor, ...]:
        layout = lay_out(rows, packed=packed, device=self.teacher.device)
        return states(self.teacher, layout).split([row.n_tokens for row in rows])


def is_fixed(row: Row) -> bool:
    """Whether the row will be met again: its response is data, not a rollout."""
    return not row.branches and not row.on_policy


def teacher_states(
    teacher: PreTrainedModel, kept: TeacherStates | None, rows: Sequence[Row], layout: Layout, *, packed: bool
) -> Tensor:
    """[N, d] of the teacher at a layout's predictors, from ``kept`` where there is such a store."""
    if kept is not None:
        return kept.of(rows, packed=packed)
    with torch.no_grad():
        return states(teacher, layout)
