"""LK losses: relation to TVD, limits in eta, the stopped gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from specalign.losses.kl import forward_kl
from specalign.losses.lk import lk_alpha, lk_hybrid
from specalign.losses.tvd import overlap, tvd


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), student)[0]


def test_lk_alpha_is_minus_log_overlap_and_at_least_tvd(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(50, 9), draw(50, 9)
    torch.testing.assert_close(lk_alpha(student, teacher), -overlap(student, teacher).log())
    assert (lk_alpha(student, teacher) >= tvd(student, teacher)).all()


def test_the_gradient_of_lk_alpha_is_that_of_tvd_over_alpha(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(5, 9).requires_grad_(), draw(5, 9)
    alpha = overlap(student, teacher).detach().unsqueeze(-1)
    expected = gradient(tvd(student, teacher), student) / alpha
    torch.testing.assert_close(gradient(lk_alpha(student, teacher), student), expected)


def test_lk_alpha_has_a_gradient_where_tvd_has_none() -> None:
    """Almost disjoint in float32: alpha = e^-200 underflows, its logarithm does not."""
    student, teacher = torch.tensor([200.0, 0.0]).requires_grad_(), torch.tensor([0.0, 200.0])
    assert gradient(tvd(student, teacher), student).abs().max() == 0
    assert gradient(lk_alpha(student, teacher), student).abs().max() > 0.4


def test_lk_hybrid_between_kl_and_tvd(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(5, 9), draw(5, 9)
    torch.testing.assert_close(lk_hybrid(student, teacher, eta=0), forward_kl(student, teacher))
    torch.testing.assert_close(lk_hybrid(student, teacher, eta=1e4), tvd(student, teacher))


def test_the_mixing_weight_of_lk_hybrid_is_per_token_and_gets_no_gradient(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(5, 9).requires_grad_(), draw(5, 9)
    mix = torch.exp(-3 * overlap(student, teacher)).detach()
    parts = mix * forward_kl(student, teacher) + (1 - mix) * tvd(student, teacher)
    torch.testing.assert_close(lk_hybrid(student, teacher), parts)
    torch.testing.assert_close(
        gradient(lk_hybrid(student, teacher), student), gradient(parts, student), rtol=1e-9, atol=1e-12
    )
