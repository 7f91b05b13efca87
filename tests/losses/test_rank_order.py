"""The rank-order loss: closed forms, invariances, and the bounds that docs/rank_order.md proves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specalign.losses.rank_order import rank_order
from specalign.losses.tvd import overlap, tvd

P = torch.tensor([0.6, 0.3, 0.08, 0.02], dtype=torch.float64)
Z = torch.tensor([0.5, 1.0, -1.0, 2.0], dtype=torch.float64)
PURE: dict[str, Any] = {"calibration": 0.0, "pairwise": 0.0}


def gradient(student: Tensor, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), student)[0]


def test_plackett_luce_on_four_tokens() -> None:
    a, b, c, d = Z.exp().tolist()
    first = -math.log(a / (a + b + c + d))
    second = -math.log(b / (b + c + d))
    expected = (0.6 * first + 0.3 * second) / 0.9
    assert rank_order(Z, P.log(), top_k=2, **PURE).item() == pytest.approx(expected)


def test_without_the_rest_only_hard_negatives_compete() -> None:
    """The student's own favourite outside the teacher's top two is token 3."""
    a, b, _, d = Z.exp().tolist()
    expected = (-0.6 * math.log(a / (a + b + d)) - 0.3 * math.log(b / (b + d))) / 0.9
    value = rank_order(Z, P.log(), top_k=2, n_negatives=1, rest=False, **PURE)
    assert value.item() == pytest.approx(expected)


def test_all_negatives_are_the_rest(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(5, 9), draw(5, 9)
    every = rank_order(student, teacher, top_k=3, n_negatives=6, rest=False)
    torch.testing.assert_close(every, rank_order(student, teacher, top_k=3, rest=True))


def test_contrast_on_four_tokens() -> None:
    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    def excess(i: int) -> float:
        gap = 0.5 * math.log(P[i] / P[3])
        return (Z[3].item() - Z[i].item() + gap) / 2

    expected = 3 * (0.6 * softplus(excess(0)) + 0.3 * softplus(excess(1))) / 0.9
    value = rank_order(
        Z, P.log(), top_k=2, n_negatives=1, ranking=0, pairwise=3, margin=0.5, tau=2, calibration=0
    )
    assert value.item() == pytest.approx(expected)


def test_the_parts_add_up(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(5, 9), draw(5, 9)
    none: dict[str, Any] = {"ranking": 0.0, "pairwise": 0.0, "calibration": 0.0}
    whole = rank_order(student, teacher, top_k=3, ranking=0.7, pairwise=0.2, calibration=2.0)
    parts = [
        0.7 * rank_order(student, teacher, top_k=3, **{**none, "ranking": 1.0}),
        0.2 * rank_order(student, teacher, top_k=3, **{**none, "pairwise": 1.0}),
        2.0 * tvd(student, teacher),
    ]
    torch.testing.assert_close(whole, parts[0] + parts[1] + parts[2])


@pytest.mark.parametrize("top_k", [8, 9, 50])
def test_a_vocabulary_smaller_than_the_candidates(top_k: int, draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(5, 9), draw(5, 9)
    value = rank_order(student, teacher, top_k=top_k, n_negatives=50, pairwise=1.0)
    torch.testing.assert_close(value, rank_order(student, teacher, top_k=8, n_negatives=1, pairwise=1.0))


def test_uniform_weights_see_the_teachers_order_alone(draw: Callable[..., Tensor]) -> None:
    """ListMLE: any monotone change of the teacher's logits leaves it as it is, if weights are equal."""
    student, teacher = draw(5, 9), draw(5, 9)
    squeezed = torch.tanh(teacher / 5) * 40 - 3
    plain, other = (rank_order(student, t, top_k=4, weight_power=0, **PURE) for t in (teacher, squeezed))
    torch.testing.assert_close(plain, other)
    plain, other = (rank_order(student, t, top_k=4, **PURE) for t in (teacher, squeezed))
    assert not torch.allclose(plain, other)


def test_a_large_power_leaves_cross_entropy_on_the_teachers_favourite(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(5, 9), draw(5, 9)
    favourite = -student.log_softmax(-1).gather(-1, teacher.argmax(-1, keepdim=True)).squeeze(-1)
    torch.testing.assert_close(rank_order(student, teacher, weight_power=1e6, **PURE), favourite)


def test_a_tie_of_the_teacher_pulls_both_tokens_up(draw: Callable[..., Tensor]) -> None:
    """At a tie the order is arbitrary, and so is the extra pull on the first: at most the second weight."""
    teacher = torch.tensor([2.0, 2.0, -1.0, -3.0], dtype=torch.float64)
    student = torch.zeros(4, dtype=torch.float64).requires_grad_()
    slope = gradient(student, rank_order(student, teacher, top_k=2, **PURE))
    assert slope[:2].max() < 0
    assert (slope[0] - slope[1]).abs() <= 0.5 + 1e-12
    assert slope[2:].min() > 0


def test_the_gradient_is_choices_probability_minus_weight() -> None:
    """For token pi_i: sum of w_j Pr(pi_i chosen at step j) over j <= i, minus w_i."""
    student = Z.clone().requires_grad_()
    slope = gradient(student, rank_order(student, P.log(), top_k=2, **PURE))
    w = [0.6 / 0.9, 0.3 / 0.9]
    a, b, c, d = Z.exp().tolist()
    step_1, step_2 = a + b + c + d, b + c + d
    expected = [
        w[0] * a / step_1 - w[0],
        w[0] * b / step_1 + w[1] * b / step_2 - w[1],
        w[0] * c / step_1 + w[1] * c / step_2,
        w[0] * d / step_1 + w[1] * d / step_2,
    ]
    torch.testing.assert_close(slope, torch.tensor(expected, dtype=torch.float64))


def bound(student: Tensor, teacher: Tensor, top_k: int) -> Tensor:
    """log 2 times the weight of the teacher's tokens that stand above the student's favourite."""
    top_log_p, top = teacher.log_softmax(-1).topk(top_k, dim=-1)
    chosen = top == student.argmax(-1, keepdim=True)
    above = 1 - chosen.long().cumsum(-1)
    return math.log(2) * (torch.softmax(top_log_p, -1) * above).sum(-1)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 30), top_k=st.integers(1, 6))
def test_the_loss_bounds_the_weight_ranked_above_the_draft(seed: int, scale: float, top_k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, 30, 7, generator=generator, dtype=torch.float64)
    loss = rank_order(student, teacher, top_k=top_k, **PURE)
    assert (loss >= bound(student, teacher, top_k) - 1e-12).all()


def test_the_bound_holds_where_it_is_hardest() -> None:
    """Students found by gradient descent on loss minus bound, started on every rejected draft."""
    teacher = torch.tensor([1.2, 1.0, 0.3, -0.5, -1.0], dtype=torch.float64)
    for draft in range(1, 5):
        student = torch.zeros(5, dtype=torch.float64).requires_grad_()
        optimiser = torch.optim.Adam([student], lr=0.1)
        for _ in range(150):
            # the draft is the argmax, by a hair, whatever the parameters
            logits = torch.where(torch.arange(5) == draft, student.max().detach() + 1e-9, student)
            loss = rank_order(logits, teacher, top_k=3, **PURE)
            assert loss >= bound(logits, teacher, 3) - 1e-12
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def test_the_bound_on_rejections_is_attained() -> None:
    """Two favourites level, everything else in the teacher's order far below: loss -> w_1 log 2."""
    teacher = P.log()
    student = torch.tensor([0.0, 1e-9, -50, -100], dtype=torch.float64)
    loss = rank_order(student, teacher, top_k=3, **PURE).item()
    assert int(student.argmax()) != int(teacher.argmax())
    assert loss == pytest.approx(0.6 / 0.98 * math.log(2), rel=1e-6)


def minimise(teacher: Tensor, **hyper: Any) -> Tensor:
    student = torch.zeros_like(teacher).requires_grad_()
    optimiser = torch.optim.Adam([student], lr=0.1)
    for _ in range(600):
        optimiser.zero_grad()
        rank_order(student, teacher, **hyper).sum().backward()
        optimiser.step()
    return student.detach()


def test_pure_ranking_ends_in_one_hot_drafts_and_calibration_does_not() -> None:
    """At the pure loss's infimum q is one-hot: acceptance is 1 at temperature 0, but max p when sampling."""
    teacher = P.log()
    pure = overlap(minimise(teacher, calibration=0.0), teacher)
    calibrated = overlap(minimise(teacher, calibration=10.0), teacher)
    assert pure.item() == pytest.approx(P.max().item(), abs=0.02)
    assert calibrated > 0.97


def anchor(p: Tensor, top_k: int) -> float:
    """The calibration from which on q = p is a local minimum: (1 + sum_{j=2..k} p_j / S_j) / P_k."""
    left = 1 - p.cumsum(0) + p  # S_j: what steps 1..j-1 have not taken
    return float((1 + (p[1:top_k] / left[1:top_k]).sum()) / p[:top_k].sum())


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_calibration_that_anchors_q_at_p(top_k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = 1e-5 * torch.randn(4000, 4, generator=generator, dtype=torch.float64)
    steps[0] = 1e-5 * torch.tensor([1.0, 0, 0, -30])  # nearly the critical exchange: the favourite for the last

    def change(calibration: float) -> Tensor:
        teacher = P.log().expand_as(steps)
        moved = rank_order(teacher + steps, teacher, top_k=top_k, calibration=calibration)
        return moved - rank_order(teacher, teacher, top_k=top_k, calibration=calibration)

    threshold = anchor(P, top_k)
    assert 1 / P[:top_k].sum() <= threshold <= top_k / P[:top_k].sum()
    assert (change(1.01 * threshold) > 0).all()
    assert (change(0.99 * threshold) < 0).any()


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_anchor_is_that_calibration_token_by_token(top_k: int) -> None:
    """For teachers of every sharpness at once, and for one whose list leaves nothing."""
    teacher = torch.stack([P.log() * power for power in (0.2, 1.0, 3.0)]).log_softmax(-1)
    student = Z.expand_as(teacher)
    found = rank_order(student, teacher, top_k=top_k, calibration=0.5, anchor=1.3)
    least = [anchor(p.exp(), top_k) for p in teacher]
    for ours, row, factor in zip(found, teacher, least, strict=True):
        expected = rank_order(Z, row, top_k=top_k, calibration=0.5 + 1.3 * factor)
        assert ours.item() == pytest.approx(expected.item())
    sure = torch.tensor([300.0, 0.0, -300.0, -600.0])
    assert rank_order(sure, sure, top_k=top_k, calibration=0.0, anchor=1.0).isfinite()
