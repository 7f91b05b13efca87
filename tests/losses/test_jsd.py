"""Generalised JSD: bounds, symmetry, and its two ends."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from specalign.losses.jsd import jsd
from specalign.losses.kl import forward_kl, reverse_kl


def entropy(beta: float) -> float:
    return -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_the_entropy_of_beta_bounds_it_and_disjoint_masses_reach_it(
    beta: float, draw: Callable[..., Tensor]
) -> None:
    assert jsd(draw(50, 9, scale=9.0), draw(50, 9, scale=9.0), beta=beta).max() < entropy(beta)
    apart = torch.tensor([1e4, 0.0]), torch.tensor([0.0, 1e4])
    assert jsd(*apart, beta=beta).item() == pytest.approx(entropy(beta))


def test_symmetric_only_at_one_half(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(4, 9), draw(4, 9)
    torch.testing.assert_close(jsd(student, teacher), jsd(teacher, student))
    torch.testing.assert_close(jsd(student, teacher, beta=0.2), jsd(teacher, student, beta=0.8))
    assert not torch.allclose(jsd(student, teacher, beta=0.2), jsd(teacher, student, beta=0.2))


def test_on_two_tokens() -> None:
    p, q = (0.8, 0.2), (0.4, 0.6)
    m = [0.25 * a + 0.75 * b for a, b in zip(p, q, strict=True)]
    kl_p = sum(a * math.log(a / c) for a, c in zip(p, m, strict=True))
    kl_q = sum(b * math.log(b / c) for b, c in zip(q, m, strict=True))
    value = jsd(torch.tensor(q).log(), torch.tensor(p).log(), beta=0.25).item()
    assert value == pytest.approx(0.25 * kl_p + 0.75 * kl_q)


def test_the_ends_are_the_rescaled_limits_and_no_silent_zero(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(4, 9), draw(4, 9)
    torch.testing.assert_close(jsd(student, teacher, beta=0), forward_kl(student, teacher))
    torch.testing.assert_close(jsd(student, teacher, beta=1), reverse_kl(student, teacher))
    near_0, near_1 = jsd(student, teacher, beta=1e-7) / 1e-7, jsd(student, teacher, beta=1 - 1e-7) / 1e-7
    torch.testing.assert_close(near_0, jsd(student, teacher, beta=0), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(near_1, jsd(student, teacher, beta=1), rtol=1e-3, atol=1e-5)


def test_beta_outside_its_range_is_refused(draw: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="beta"):
        jsd(draw(1, 3), draw(1, 3), beta=1.01)
