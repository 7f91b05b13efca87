"""Objectives over long vocabularies without whole logits in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Project = Callable[[Tensor], Tensor]


def chunked_loss(
    objective: Callable[..., Tensor],
    student: tuple[Tensor, Project],
    teacher: tuple[Tensor, Project],
    *,
    labels: Tensor | None = None,
    chunk_tokens: int = 1024,
) -> Tensor:
    """Per-token loss [N] of ``objective`` from hidden states, ``chunk_tokens`` positions at a time.

    ``student`` and ``teacher`` are (hidden states [N, d], head: [n, d] -> aligned logits [n, C]). Where more
    than one chunk is needed, its logits are computed again in the backward pass, so that at most one chunk of
    them is alive. Gradients reach the student's hidden states and the weights of its head; none the teacher.
    """
    n = student[0].shape[0]

    def piece(rows: slice) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher[1](teacher[0][rows])
        return objective(
            student[1](student[0][rows]), teacher_logits, labels=None if labels is None else labels[rows]
        )

    if n <= chunk_tokens:
        return piece(slice(None))
    rows = [slice(start, start + chunk_tokens) for start in range(0, n, chunk_tokens)]
    return torch.cat([checkpoint(piece, chunk, use_reentrant=False) for chunk in rows])
