"""The contrastive rank-order loss: keep the teacher's ranking of its likeliest tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specalign.losses.logits import log_probabilities
from specalign.losses.tvd import tvd


def rank_order(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    labels: Tensor | None = None,
    top_k: int = 8,
    n_negatives: int = 8,
    pairwise: float = 0.0,
    margin: float = 0.0,
    tau: float = 1.0,
    calibration: float = 1.0,
) -> Tensor:
    """Plackett-Luce over the teacher's top tokens + pairwise * contrast + calibration * TVD.

    With z the student's logits, pi the teacher's ``top_k`` tokens in falling order of p, w_i = p(pi_i) / sum_j
    p(pi_j), and N the student's own ``n_negatives`` likeliest tokens outside pi (hard negatives):

        ranking  = sum_i w_i (log(sum_{j >= i} exp z(pi_j) + sum_{v not in pi} exp z(v)) - z(pi_i))
        contrast = sum_i w_i mean_{n in N} softplus((z(n) - z(pi_i) + margin (log p(pi_i) - log p(n))) / tau)

    The ranking is a top-weighted ListMLE (Xia et al. 2008) in which every other token stands in each
    denominator. Its first term is -log q(argmax p), at least log 2 wherever the greedy draft is rejected, so
    it bounds the rejections at temperature 0. Ranks say nothing of sum min(p, q), what counts when sampling:
    there ``calibration`` > 0 anchors q to p. (One screening run on SmolLM2 found the calibrated form best and
    no gain from the contrast, hence the defaults.)

    Logits [..., C] -> [...], >= 0, in float32 or better. ``labels`` are not used. Raises ValueError for
    top_k < 1, n_negatives < 1, tau <= 0 or a negative weight.
    """
    if top_k < 1 or n_negatives < 1 or tau <= 0 or pairwise < 0 or calibration < 0:
        raise ValueError("rank_order needs top_k, n_negatives >= 1, tau > 0, pairwise, calibration >= 0")
    log_p = log_probabilities(teacher_logits)
    log_q = log_probabilities(student_logits)
    top_k = min(top_k, log_p.shape[-1] - 1)
    top_log_p, top = log_p.topk(top_k, dim=-1)
    weights = torch.softmax(top_log_p, dim=-1)
    top_z = log_q.gather(-1, top)
    others = log_q.scatter(-1, top, -torch.inf)

    loss = _plackett_luce(top_z, others.logsumexp(-1, keepdim=True), weights)
    if pairwise > 0:
        negative_z, negative = others.topk(min(n_negatives, log_p.shape[-1] - top_k), dim=-1)
        gap = top_log_p.unsqueeze(-1) - log_p.gather(-1, negative).unsqueeze(-2)
        excess = negative_z.unsqueeze(-2) - top_z.unsqueeze(-1) + margin * gap
        loss = loss + pairwise * (weights * functional.softplus(excess / tau).mean(-1)).sum(-1)
    if calibration > 0:
        loss = loss + calibration * tvd(student_logits, teacher_logits)
    return loss


def _plackett_luce(top_z: Tensor, rest: Tensor, weights: Tensor) -> Tensor:
    """Weighted -log likelihood of the order of ``top_z`` [..., k], ``rest`` [..., 1] in each denominator."""
    remaining = top_z.flip(-1).logcumsumexp(-1).flip(-1)
    return (weights * (torch.logaddexp(remaining, rest) - top_z)).sum(-1)
