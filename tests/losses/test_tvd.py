"""TVD, the overlap that it completes to one, and agreement of argmaxes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from specalign.losses.tvd import argmax_agreement, overlap, tvd


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_tvd_is_half_the_l1_distance_and_one_minus_the_overlap(
    temperature: float, draw: Callable[..., Tensor]
) -> None:
    student, teacher = draw(6, 9), draw(6, 9)
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    distance = tvd(student, teacher, temperature=temperature)
    torch.testing.assert_close(distance, (p - q).abs().sum(-1) / 2)
    torch.testing.assert_close(distance, 1 - overlap(student, teacher, temperature=temperature))
    torch.testing.assert_close(distance, tvd(teacher, student, temperature=temperature))


def test_tvd_is_1_for_disjoint_supports() -> None:
    assert tvd(torch.tensor([1e4, 0.0]), torch.tensor([0.0, 1e4])).item() == 1


def test_the_triangle_inequality(draw: Callable[..., Tensor]) -> None:
    a, b, c = draw(200, 5), draw(200, 5), draw(200, 5)
    assert (tvd(a, c) <= tvd(a, b) + tvd(b, c) + 1e-12).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_trimmed_overlap_is_the_whole_one_with_q_zero_outside(
    temperature: float, draw: Callable[..., Tensor]
) -> None:
    """The teacher keeps its whole normaliser: renormalising it would promise too much acceptance."""
    ids, student, teacher = torch.tensor([0, 3, 4, 8]), draw(6, 4), draw(6, 9)
    q = torch.zeros(6, 9).double().index_copy(1, ids, (student / temperature).softmax(-1))
    truth = torch.minimum((teacher / temperature).softmax(-1), q).sum(-1)
    whole = (teacher / temperature).logsumexp(-1)
    measured = overlap(student, teacher[:, ids], whole, temperature=temperature)
    torch.testing.assert_close(measured, truth)
    assert (overlap(student, teacher[:, ids], temperature=temperature) > measured).all()


def test_argmax_agreement() -> None:
    student = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    teacher = torch.tensor([[0.0, 9.0, 1.0], [0.0, 0.0, 1.0], [5.0, 5.0, 0.0]])
    assert argmax_agreement(student, teacher).tolist() == [1, 0, 1]
