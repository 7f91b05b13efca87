"""LK losses: training on the acceptance rate without TVD's weak gradient at a cold start (arXiv:2602.23881)."""

import torch
from torch import Tensor

from specalign.losses.logits import log_probabilities
from specalign.losses.tvd import total_variation


def lk_alpha(
    student_logits: Tensor, teacher_logits: Tensor, *, labels: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """-log alpha, with alpha = sum_v min(p(v), q(v)) at temperature T.

    arXiv:2602.23881 (L_alpha). Its gradient is that of TVD divided by alpha, so it does not fade where p and q
    hardly overlap. alpha is summed in log space: finite for disjoint supports. Logits [..., C] -> [...] nats,
    >= 0, and 0 at p = q; at least ``tvd``. ``labels`` are not used.
    """
    log_p = log_probabilities(teacher_logits, temperature)
    log_q = log_probabilities(student_logits, temperature)
    return -torch.minimum(log_p, log_q).logsumexp(-1)


def lk_hybrid(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    labels: Tensor | None = None,
    eta: float = 3.0,
    temperature: float = 1.0,
) -> Tensor:
    """lambda KL(p || q) + (1 - lambda) TVD(p, q), with lambda = exp(-eta * stopgrad(alpha)), token by token.

    arXiv:2602.23881 (L_lambda; eta = 3 there). KL where the drafter is bad, TVD where it is good. eta = 0 is
    ``forward_kl`` (without T^2), eta -> infinity is ``tvd`` wherever alpha > 0. Logits [..., C] -> [...], >= 0,
    and 0 at p = q. ``labels`` are not used. Raises ValueError for eta < 0.
    """
    if not eta >= 0:
        raise ValueError(f"eta must be at least 0, not {eta}")
    log_p = log_probabilities(teacher_logits, temperature)
    log_q = log_probabilities(student_logits, temperature)
    p = log_p.exp()
    distance = total_variation(p, log_q.exp())
    mix = torch.exp(-eta * (1 - distance.detach()))
    return mix * (p * (log_p - log_q)).sum(-1) + (1 - mix) * distance
