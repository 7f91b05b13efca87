"""Expected tokens per target call: closed forms, sequence ends, and a simulation of drafting."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from specalign.losses.accepted_length import accepted_length, window_sum
from specalign.losses.tvd import overlap

ALPHA = torch.tensor([0.9, 0.5, 0.2, 0.7], dtype=torch.float64)


def test_a_window_counts_products_of_overlaps() -> None:
    expected = [
        1 + 0.9 + 0.9 * 0.5 + 0.9 * 0.5 * 0.2,
        1 + 0.5 + 0.5 * 0.2 + 0.5 * 0.2 * 0.7,
        1 + 0.2 + 0.2 * 0.7,  # the sequence ends
        1 + 0.7,
    ]
    torch.testing.assert_close(window_sum(ALPHA, gamma=3), -torch.tensor(expected, dtype=torch.float64))


def test_constant_overlap_gives_the_formula_of_leviathan() -> None:
    """(1 - alpha^(gamma + 1)) / (1 - alpha), arXiv:2211.17192, equation 1, far from the sequence's end."""
    alpha, gamma = 0.8, 5
    window = window_sum(torch.full((20,), alpha, dtype=torch.float64), gamma=gamma)
    assert window[0].item() == pytest.approx(-(1 - alpha ** (gamma + 1)) / (1 - alpha))


def test_one_drafted_token_is_one_plus_the_overlap(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(2, 6, 9), draw(2, 6, 9)
    torch.testing.assert_close(accepted_length(student, teacher, gamma=1), -1 - overlap(student, teacher))


def test_best_and_worst_value() -> None:
    same = torch.zeros(6, 4)
    assert accepted_length(same, same, gamma=3)[:4].tolist() == [-4.0] * 4
    apart = torch.tensor([[1e4, 0.0]]).repeat(6, 1)
    assert accepted_length(apart, apart.flip(-1), gamma=3).tolist() == [-1.0] * 6


def test_packed_sequences_do_not_see_each_other() -> None:
    packed = window_sum(ALPHA, sequence_ids=torch.tensor([4, 4, 9, 9]), gamma=3)
    torch.testing.assert_close(packed[:2], window_sum(ALPHA[:2], gamma=3))
    torch.testing.assert_close(packed[2:], window_sum(ALPHA[2:], gamma=3))


def test_a_simulation_of_drafting_agrees() -> None:
    """Each of gamma drafts is accepted with its alpha until the first rejection; one more token comes free."""
    generator = torch.Generator().manual_seed(0)
    accepted = torch.rand(200_000, 4, generator=generator, dtype=torch.float64) < ALPHA
    n_tokens = 1 + accepted.long().cumprod(-1).sum(-1).double()
    error = 4 * n_tokens.std() / len(n_tokens) ** 0.5
    assert abs(n_tokens.mean() + window_sum(ALPHA, gamma=4)[0]) < error


def test_a_zero_overlap_does_not_poison_the_gradient() -> None:
    alpha = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(window_sum(alpha, gamma=3).sum(), alpha)
    expected = [-(1 + 0), -((1 + 0.5) + 0.5 * (1 + 0.5)), -1.0]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))
