"""Expected tokens per target call: what speculative decoding counts, as a loss over windows of positions."""

import torch
from torch import Tensor
from torch.nn import functional

from specalign.losses.tvd import overlap


def accepted_length(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    labels: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    gamma: int = 4,
    temperature: float = 1.0,
) -> Tensor:
    """-(1 + sum_{j=1..gamma} prod_{i=1..j} alpha_{t+i-1}) with alpha_t = sum_v min(p_t(v), q_t(v)).

    The negative expected number of tokens of one target call that drafts ``gamma`` tokens from position t,
    with the overlaps along the given sequence standing for those along the accepted one (D-PACE,
    arXiv:2605.18810; chain loss, arXiv:2606.11552). Logits [..., T, C] -> [..., T] between -(1 + gamma) (at
    p = q) and -1 (disjoint). Nothing is accepted past the end of a sequence, see ``window_sum``. ``labels``
    are not used. Raises ValueError for gamma < 1.
    """
    alpha = window_overlap(student_logits, teacher_logits, temperature=temperature)
    return window_sum(alpha, sequence_ids=sequence_ids, gamma=gamma)


def window_overlap(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, gamma: int = 4
) -> Tensor:
    """alpha [..., T]: all of ``accepted_length`` that needs logits. ``gamma`` is not used."""
    return overlap(student_logits, teacher_logits, temperature=temperature)


def window_span(*, gamma: int = 4, temperature: float = 1.0) -> int:
    """Positions on which the loss of one depends. ``temperature`` is not used."""
    return gamma


def window_sum(
    alpha: Tensor, *, sequence_ids: Tensor | None = None, gamma: int = 4, temperature: float = 1.0
) -> Tensor:
    """``accepted_length`` from overlaps alpha [..., T]: its whole dependence on the logits.

    ``sequence_ids`` [..., T] say to which sequence a position belongs where T holds several of them, packed
    one after the other; a window ends where the id changes. None: one sequence along T. ``temperature`` is not used.
    """
    if gamma < 1:
        raise ValueError(f"gamma must be at least 1, not {gamma}")
    windows = functional.pad(alpha, (0, gamma - 1)).unfold(-1, gamma, 1)
    if sequence_ids is not None:
        padded = functional.pad(sequence_ids, (0, gamma - 1), value=-1).unfold(-1, gamma, 1)
        windows = torch.where(padded == sequence_ids.unsqueeze(-1), windows, 0)
    return -(1 + windows.cumprod(-1).sum(-1))
