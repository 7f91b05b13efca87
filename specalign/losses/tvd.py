"""Total variation distance: one minus the acceptance rate of speculative sampling."""

from torch import Tensor, minimum

from specalign.losses.logits import log_probabilities


def tvd(
    student_logits: Tensor, teacher_logits: Tensor, *, labels: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """1/2 sum_v |p(v) - q(v)| = 1 - sum_v min(p(v), q(v)), at temperature T.

    Leviathan et al. 2023 (arXiv:2211.17192, theorem 3.5): a drafted token is accepted with probability
    sum min(p, q), so this is the probability of a rejection. DistillSpec (arXiv:2310.08461) trains on it.
    Its gradient is weak where p and q hardly overlap. Logits [..., C] -> [...] in 0..1, 0 at p = q.
    ``labels`` are not used.
    """
    p = log_probabilities(teacher_logits, temperature).exp()
    q = log_probabilities(student_logits, temperature).exp()
    return total_variation(p, q)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """1/2 sum |p - q| of probabilities [..., C] -> [...]."""
    return 0.5 * (p - q).abs().sum(-1)


def overlap(
    student_logits: Tensor,
    teacher_logits: Tensor,
    teacher_logsumexp: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Expected acceptance sum_v min(p(v), q(v)) at temperature T; logits [..., C] -> [...] in 0..1.

    For a drafter with a trimmed vocabulary pass the log-sum-exp [...] of the teacher's *whole* logits / T: p
    then keeps the mass that lies outside the C common ids, where q is 0, and the value is the true acceptance.
    """
    q = log_probabilities(student_logits, temperature).exp()
    if teacher_logsumexp is None:
        p = log_probabilities(teacher_logits, temperature).exp()
    else:
        p = (teacher_logits.to(q.dtype) / temperature - teacher_logsumexp.unsqueeze(-1)).exp()
    return minimum(p, q).sum(-1)


def argmax_agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1 where p and q have the same argmax, else 0: expected acceptance at temperature 0.

    Logits [..., C] -> [...] float32. A tie goes to the lowest index on both sides, as in greedy decoding.
    """
    return (student_logits.argmax(-1) == teacher_logits.argmax(-1)).float()
