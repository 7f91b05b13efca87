"""KL divergences against a mixture: bounded, with tame gradients where q has no mass (DistiLLM)."""

import math

import torch
from torch import Tensor

from specalign.losses.logits import log_probabilities


def skew_forward_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    labels: Tensor | None = None,
    skew: float = 0.1,
    temperature: float = 1.0,
) -> Tensor:
    """T^2 * KL(p || skew p + (1 - skew) q), both at temperature T.

    DistiLLM (Ko et al. 2024, arXiv:2402.03898, section 3.1; 0.1 is its default). skew = 0 is ``forward_kl``.
    Logits [..., C] -> [...] nats between 0 (at p = q) and -T^2 log(skew). ``labels`` are not used. Raises
    ValueError outside 0 <= skew < 1 (at 1 the divergence is 0 whatever q is).
    """
    _check(skew)
    log_p = log_probabilities(teacher_logits, temperature)
    log_q = log_probabilities(student_logits, temperature)
    return temperature**2 * _kl_to_mixture(log_p, log_q, skew)


def skew_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    labels: Tensor | None = None,
    skew: float = 0.1,
    temperature: float = 1.0,
) -> Tensor:
    """T^2 * KL(q || skew q + (1 - skew) p), both at temperature T.

    DistiLLM (arXiv:2402.03898, section 3.1). skew = 0 is ``reverse_kl``. Shapes, range and errors as in
    ``skew_forward_kl``.
    """
    return skew_forward_kl(teacher_logits, student_logits, skew=skew, temperature=temperature)


def _kl_to_mixture(log_a: Tensor, log_b: Tensor, skew: float) -> Tensor:
    """KL(a || skew a + (1 - skew) b) over the last dimension."""
    if skew == 0:
        return (log_a.exp() * (log_a - log_b)).sum(-1)
    mixture = torch.logaddexp(log_a + math.log(skew), log_b + math.log1p(-skew))
    return (log_a.exp() * (log_a - mixture)).sum(-1)


def _check(skew: float) -> None:
    if not 0 <= skew < 1:
        raise ValueError(f"skew must lie in 0 <= skew < 1, not {skew}")
