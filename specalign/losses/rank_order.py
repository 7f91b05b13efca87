"""The contrastive rank-order loss: keep the teacher's ranking of its likeliest tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specalign.losses.logits import FLOOR, log_probabilities
from specalign.losses.tvd import total_variation


def rank_order(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    labels: Tensor | None = None,
    top_k: int = 8,
    weight_power: float = 1.0,
    rest: bool = True,
    n_negatives: int = 8,
    ranking: float = 1.0,
    pairwise: float = 0.0,
    margin: float = 0.0,
    tau: float = 1.0,
    calibration: float = 1.0,
    anchor: float = 0.0,
) -> Tensor:
    """ranking * Plackett-Luce over the teacher's top tokens + pairwise * contrast + (calibration + anchor l*) TVD.

    With z the student's logits, pi the teacher's ``top_k`` tokens in falling order of p, w_i = p(pi_i)^a /
    sum_j p(pi_j)^a (a = ``weight_power``), and N the student's own ``n_negatives`` likeliest tokens outside
    pi (hard negatives, mined on the fly):

        Plackett-Luce = sum_i w_i (log(sum_{j >= i} exp z(pi_j) + sum_{v in O} exp z(v)) - z(pi_i))
        contrast = sum_i w_i mean_{n in N} softplus((z(n) - z(pi_i) + margin (log p(pi_i) - log p(n))) / tau)

    O is every token outside pi (``rest``: the negatives plus one item for all others), or the hard negatives
    alone. The first term is a top-weighted ListMLE (Xia et al. 2008). With ``rest``, its first summand is
    -log q(argmax p), at least log 2 wherever the greedy draft is rejected: at temperature 0 the loss bounds
    the rejections (docs/rank_order.md states the sharp form). Ranks say nothing of sum min(p, q), what counts
    when sampling: there ``calibration`` > 0 pulls q towards p. l*(p) = (1 + sum_{i=2..k} p(pi_i) / S_i) / P_k, with
    S_i the mass that ranks before i leave and P_k that of the list, is the least factor with which q = p is a local
    minimum (docs/rank_order.md): ``anchor`` > 1 anchors every token there, whatever its distribution.
    (One screening run on SmolLM2 found the calibrated form best and no gain from the contrast, hence the defaults.)

    Logits [..., C] -> [...], >= 0, in float32 or better; 0 at p = q for the calibration alone. ``labels`` are
    not used. Raises ValueError for top_k < 1, n_negatives < 1, tau <= 0, a negative factor or power.
    """
    factors = ranking, pairwise, calibration, anchor, weight_power
    if top_k < 1 or n_negatives < 1 or tau <= 0 or min(factors) < 0:
        raise ValueError(
            "rank_order needs top_k, n_negatives >= 1, tau > 0, and no negative ranking, pairwise, calibration, "
            "anchor or weight_power"
        )
    log_p = log_probabilities(teacher_logits)
    log_q = log_probabilities(student_logits)
    top_k = min(top_k, log_p.shape[-1] - 1)
    top_log_p, top = log_p.topk(top_k, dim=-1)
    weights = torch.softmax(weight_power * top_log_p, dim=-1)
    top_z = log_q.gather(-1, top)
    others = log_q.scatter(-1, top, FLOOR)
    loss = torch.zeros_like(top_z[..., 0])

    if pairwise > 0 or not rest:
        negative_z, negative = others.topk(min(n_negatives, log_p.shape[-1] - top_k), dim=-1)
    if ranking > 0:
        outside = others if rest else negative_z
        loss = loss + ranking * _plackett_luce(top_z, outside.logsumexp(-1, keepdim=True), weights)
    if pairwise > 0:
        gap = top_log_p.unsqueeze(-1) - log_p.gather(-1, negative).unsqueeze(-2)
        excess = negative_z.unsqueeze(-2) - top_z.unsqueeze(-1) + margin * gap
        loss = loss + pairwise * (weights * functional.softplus(excess / tau).mean(-1)).sum(-1)
    if calibration > 0 or anchor > 0:
        factor = calibration + (anchor * ranking * _least_anchor(top_log_p.exp()) if anchor > 0 else 0.0)
        loss = loss + factor * total_variation(log_p.exp(), log_q.exp())
    return loss


def _least_anchor(top_p: Tensor) -> Tensor:
    """l* of the teacher's top probabilities [..., k], in falling order."""
    before = top_p.cumsum(-1) - top_p
    shares = top_p / (1 - before).clamp(min=torch.finfo(top_p.dtype).eps)
    return (1 + shares[..., 1:].clamp(max=1).sum(-1)) / top_p.sum(-1)


def _plackett_luce(top_z: Tensor, outside: Tensor, weights: Tensor) -> Tensor:
    """Weighted -log likelihood of the order of ``top_z`` [..., k]; ``outside`` [..., 1] is never chosen."""
    remaining = top_z.flip(-1).logcumsumexp(-1).flip(-1)
    return (weights * (torch.logaddexp(remaining, outside) - top_z)).sum(-1)
