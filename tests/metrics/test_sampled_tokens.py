"""Martingales of a sampler: zero on average for a faithful one, far from it for a wrong one."""

import math

import pytest
import torch
from torch import Tensor

from specalign.metrics.sampled_tokens import Moments, acceptance_moments, token_moments, total

N, V = 4000, 12


def distributions(seed: int) -> Tensor:
    return (2 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def drawn(p: Tensor, seed: int = 0) -> Tensor:
    return torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed)).squeeze(-1)


def test_moments_by_hand() -> None:
    p = torch.tensor([[0.5, 0.2, 0.3], [1.0, 0.0, 0.0]])
    found = token_moments(p, torch.tensor([2, 0]))
    assert found.observed == pytest.approx((0.2 + 0.3 / 2) + 1 / 2)
    assert found.expected == 1
    assert found.variance == pytest.approx(0.2 * 0.1**2 + 0.3 * 0.35**2 + 0.5 * 0.75**2 - 1 / 4)
    drafts = acceptance_moments([1, 0], [[0.5, 0.2], [1.0]])
    assert (drafts.observed, drafts.expected) == (1, pytest.approx(1.7))
    assert drafts.variance == pytest.approx(0.25 + 0.16)
    both = total([found, drafts])
    assert both.observed == pytest.approx(found.observed + 1)
    assert both.variance == pytest.approx(found.variance + 0.41)


def test_equally_likely_tokens_change_no_mean() -> None:
    p = torch.full((V, V), 1 / V)
    assert token_moments(p, torch.arange(V)).observed == pytest.approx(V / 2)


def test_the_bound_by_hand() -> None:
    assert Moments(3, 3, 1).p_value == 1
    assert Moments(13, 3, 8).p_value == pytest.approx(2 * math.exp(-100 / (16 + 20 / 3)))
    assert Moments(3, 13, 8).p_value == Moments(13, 3, 8).p_value, "too little is as wrong as too much"
    assert Moments(3.1, 3, 0).p_value == 1, "little of anything shows nothing"


def test_a_faithful_sampler_is_below_the_level_no_more_often_than_it_says() -> None:
    p = distributions(1)
    p_values = [token_moments(p[:200], drawn(p[:200], seed)).p_value for seed in range(400)]
    assert sum(value < 0.05 for value in p_values) <= 0.05 * len(p_values)


@pytest.mark.parametrize("wrong", ["temperature", "correction", "drafter"])
def test_a_wrong_sampler_is_found(wrong: str) -> None:
    """Another temperature; corrections drawn from p, not from the residual; the drafter's tokens as they are."""
    p, q = distributions(1), distributions(2)
    kept = torch.minimum(p, q)
    given = {
        "temperature": p.pow(1.25) / p.pow(1.25).sum(-1, keepdim=True),
        "correction": kept + (1 - kept.sum(-1, keepdim=True)) * p,
        "drafter": q,
    }[wrong]
    assert token_moments(p, drawn(p)).p_value > 0.05
    assert token_moments(p, drawn(given)).p_value < 1e-3


def test_acceptance_by_another_distribution_than_the_drafts_is_found() -> None:
    """A stale q: the rule compares p with what the drafter did not draw from."""
    p, q, other = distributions(1), distributions(2), distributions(3)
    uniform = torch.rand(N, generator=torch.Generator().manual_seed(5))

    def moments(said: Tensor) -> Moments:
        x = drawn(q, 4).unsqueeze(-1)
        accepted = uniform < (p.gather(-1, x) / said.gather(-1, x)).squeeze(-1)
        overlap = torch.minimum(p, said).sum(-1)
        return acceptance_moments(accepted.int().tolist(), overlap.unsqueeze(-1).tolist())

    assert moments(q).p_value > 0.05
    assert moments(other).p_value < 1e-3
