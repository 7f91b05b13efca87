"""Generalised Jensen-Shannon divergence."""

import math

import torch
from torch import Tensor

from specalign.losses.kl import forward_kl, reverse_kl
from specalign.losses.logits import log_probabilities


def jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    labels: Tensor | None = None,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """JSD(beta) = beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, at temperature T.

    GKD (Agarwal et al. 2023, arXiv:2306.13649, equation 1). The formula vanishes at both ends, while
    JSD(beta) / beta tends to KL(p || q) for beta -> 0 and JSD(beta) / (1 - beta) to KL(q || p) for beta -> 1.
    Those limits are what beta = 0 and beta = 1 give here, so that neither end is a silent zero: the value
    jumps there. Scaled by T^2 like the divergences that it tends to.

    Logits [..., C] -> [...] nats. For 0 < beta < 1 it lies between 0 (at p = q) and T^2 times the entropy of
    (beta, 1 - beta) (at disjoint supports). ``labels`` are not used. Raises ValueError outside 0 <= beta <= 1.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in 0..1, not {beta}")
    if beta == 0:
        return forward_kl(student_logits, teacher_logits, temperature=temperature)
    if beta == 1:
        return reverse_kl(student_logits, teacher_logits, temperature=temperature)
    log_p = log_probabilities(teacher_logits, temperature)
    log_q = log_probabilities(student_logits, temperature)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    to_p = (log_p.exp() * (log_p - log_m)).sum(-1)
    to_q = (log_q.exp() * (log_q - log_m)).sum(-1)
    return temperature**2 * (beta * to_p + (1 - beta) * to_q)
