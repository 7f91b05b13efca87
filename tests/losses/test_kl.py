"""KL divergences, plain and skewed: closed forms and limits."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from specalign.losses.kl import forward_kl, reverse_kl
from specalign.losses.skew import skew_forward_kl, skew_reverse_kl

P = torch.tensor([0.5, 0.25, 0.25])
Q = torch.tensor([0.25, 0.5, 0.25])


def test_forward_kl_on_three_tokens() -> None:
    expected = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5) + 0.25 * math.log(1)
    assert forward_kl(Q.log(), P.log()).item() == pytest.approx(expected)


def test_reverse_kl_on_three_tokens() -> None:
    expected = 0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.25)
    assert reverse_kl(Q.log(), P.log()).item() == pytest.approx(expected)


def test_the_gradient_of_forward_kl_is_q_minus_p() -> None:
    logits = Q.log().requires_grad_()
    (gradient,) = torch.autograd.grad(forward_kl(logits, P.log()), logits)
    torch.testing.assert_close(gradient, Q - P)


def test_reverse_is_forward_with_the_roles_swapped(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(4, 9), draw(4, 9)
    torch.testing.assert_close(reverse_kl(student, teacher), forward_kl(teacher, student))


def test_at_high_temperature_kl_is_a_squared_distance_of_logits(draw: Callable[..., Tensor]) -> None:
    """T^2 KL -> var_uniform(z_p - z_q) / 2 (Hinton et al. 2015, equation 4): so T^2 keeps the scale."""
    student, teacher = draw(4, 9), draw(4, 9)
    limit = (teacher - student).var(-1, correction=0) / 2
    torch.testing.assert_close(forward_kl(student, teacher, temperature=1e4), limit, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("skewed", "plain"), [(skew_forward_kl, forward_kl), (skew_reverse_kl, reverse_kl)])
def test_no_skew_is_plain_kl(skewed: Callable, plain: Callable, draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(4, 9), draw(4, 9)
    torch.testing.assert_close(skewed(student, teacher, skew=0), plain(student, teacher))
    torch.testing.assert_close(skewed(student, teacher, skew=1e-9), plain(student, teacher), rtol=1e-5, atol=0)


def test_skewed_kl_on_three_tokens() -> None:
    mixture = 0.1 * P + 0.9 * Q
    expected = sum(p * math.log(p / m) for p, m in zip(P.tolist(), mixture.tolist(), strict=True))
    assert skew_forward_kl(Q.log(), P.log(), skew=0.1).item() == pytest.approx(expected)


@pytest.mark.parametrize("skewed", [skew_forward_kl, skew_reverse_kl])
@pytest.mark.parametrize("skew", [0.1, 0.7])
def test_skewed_kl_ends_at_its_bound_for_disjoint_supports(skewed: Callable, skew: float) -> None:
    apart = torch.tensor([1e4, 0.0]), torch.tensor([0.0, 1e4])
    assert skewed(*apart, skew=skew).item() == pytest.approx(-math.log(skew))
