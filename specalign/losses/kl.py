"""Kullback-Leibler divergences between target p and drafter q."""

from torch import Tensor

from specalign.losses.logits import log_probabilities


def forward_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, labels: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """T^2 * KL(p || q) = T^2 * sum_v p(v) (log p(v) - log q(v)), both at temperature T.

    T^2 keeps the gradient's size when T changes (Hinton et al. 2015, arXiv:1503.02531, section 2). Covers the
    target's modes. Logits [..., C] -> [...] nats, >= 0, and 0 exactly at p = q. ``labels`` are not used.
    """
    log_p = log_probabilities(teacher_logits, temperature)
    log_q = log_probabilities(student_logits, temperature)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, labels: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """T^2 * KL(q || p) = T^2 * sum_v q(v) (log q(v) - log p(v)), both at temperature T.

    Seeks the target's modes (MiniLLM, Gu et al. 2023, arXiv:2306.08543). Logits [..., C] -> [...] nats, >= 0,
    and 0 exactly at p = q. ``labels`` are not used.
    """
    return forward_kl(teacher_logits, student_logits, temperature=temperature)
