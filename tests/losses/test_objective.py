"""Weighted sums by name: what they compute, and how a mistake in a recipe is reported."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from specalign.errors import UserError
from specalign.losses import LOSSES, hyper_parameters, objective
from specalign.losses.accepted_length import accepted_length
from specalign.losses.cross_entropy import cross_entropy
from specalign.losses.jsd import jsd
from specalign.losses.kl import forward_kl
from specalign.losses.rank_order import rank_order
from specalign.losses.tvd import tvd

V = 9


@pytest.mark.parametrize("name", LOSSES)
def test_one_name_is_that_loss(name: str, draw: Callable[..., Tensor]) -> None:
    student, teacher, labels = draw(2, 5, V), draw(2, 5, V), torch.arange(10).view(2, 5) % V
    goal = objective({name: 1.0})
    torch.testing.assert_close(
        goal(student, teacher, labels=labels), LOSSES[name](student, teacher, labels=labels)
    )


def test_a_weighted_sum_with_hyper_parameters(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(6, V), draw(6, V)
    hyper = {"temperature": 2.0, "top_k": 3, "gamma": 2}
    goal = objective({"accepted_length": 3.0, "forward_kl": 0.5, "rank_order": 1.0}, hyper)
    expected = (
        3.0 * accepted_length(student, teacher, temperature=2.0, gamma=2)
        + 0.5 * forward_kl(student, teacher, temperature=2.0)
        + rank_order(student, teacher, top_k=3)
    )
    torch.testing.assert_close(goal(student, teacher), expected)


def test_two_steps_of_one_objective(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(6, V), draw(6, V)
    goal = objective({"forward_kl": 0.5, "accepted_length": 1.0}, keep=0.5)
    columns = goal.measure(student, teacher)
    assert columns.shape == (6, 2)
    torch.testing.assert_close(goal.combine(columns), goal(student, teacher))


def test_teacher_temperature_sharpens_the_target_of_any_loss(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(6, V), draw(6, V)
    sharp = objective({"jsd": 1.0}, teacher_temperature=0.5)
    torch.testing.assert_close(sharp(student, teacher), jsd(student, 2 * teacher))


def test_kept_tokens_are_those_with_the_largest_loss(draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(10, V), draw(10, V)
    kept = objective({"tvd": 1.0}, keep=0.2)(student, teacher)
    largest = tvd(student, teacher).topk(2)
    assert sorted(kept.nonzero()[:, 0].tolist()) == sorted(largest.indices.tolist())
    torch.testing.assert_close(kept.mean(), largest.values.mean())


@pytest.mark.parametrize(
    ("weights", "options", "horizon"),
    [
        ({"forward_kl": 1.0, "rank_order": 1.0}, {}, 1),
        ({"forward_kl": 1.0, "accepted_length": 1.0}, {}, 4),
        ({"accepted_length": 1.0}, {"hyper": {"gamma": 7}}, 7),
        ({"accepted_length": 1.0}, {"keep": 0.5}, None),
    ],
)
def test_horizon(weights: dict[str, float], options: dict, horizon: int | None) -> None:
    goal = objective(weights, **options)
    assert goal.horizon == horizon
    logits = torch.zeros(2, 3)
    assert goal.measure(logits, logits, labels=torch.zeros(2, dtype=torch.long)).shape == (2, goal.n_columns)


def test_supervised_training_needs_no_teacher(draw: Callable[..., Tensor]) -> None:
    student, labels = draw(4, V), torch.tensor([0, 3, -1, 8])
    goal = objective({"cross_entropy": 2.0})
    assert not goal.needs_teacher
    assert objective({"cross_entropy": 1.0, "tvd": 1.0}).needs_teacher
    loss = goal(student, None, labels=labels)
    torch.testing.assert_close(loss, 2 * cross_entropy(student, None, labels=labels))
    assert loss[2] == 0
    torch.testing.assert_close(loss[1], -2 * student[1].log_softmax(-1)[3])


def test_cross_entropy_without_labels(draw: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="labels"):
        cross_entropy(draw(4, V), None)


def test_hyper_parameters_and_their_defaults() -> None:
    assert hyper_parameters("accepted_length") == {"gamma": 4, "temperature": 1.0}
    assert hyper_parameters("cross_entropy") == {}


@pytest.mark.parametrize(
    ("weights", "hyper", "options", "message"),
    [
        (
            {"forward_lk": 1.0},
            {},
            {},
            "unknown objective 'forward_lk'; did you mean 'forward_kl'\\? .*rank_order",
        ),
        ({}, {}, {}, "no objective given .*forward_kl"),
        ({"tvd": 0.0}, {}, {}, "weight of objective 'tvd' must be positive"),
        ({"jsd": 1.0}, {"betta": 0.5}, {}, "'betta'; did you mean 'beta'"),
        ({"tvd": 1.0}, {"beta": 0.5}, {}, "unknown hyper-parameter of tvd 'beta'"),
        ({"jsd": 1.0}, {"beta": 2.0}, {}, "objective jsd: beta must lie in 0..1, not 2"),
        ({"jsd": 1.0}, {"beta": "half"}, {}, "objective jsd: "),
        ({"accepted_length": 1.0}, {"gamma": 0}, {}, "gamma must be at least 1"),
        ({"tvd": 1.0}, {}, {"keep": 0.0}, "keep must lie in"),
        ({"tvd": 1.0}, {}, {"teacher_temperature": 0.0}, "teacher_temperature must be positive"),
    ],
)
def test_a_mistake_is_named(weights: dict, hyper: dict, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective(weights, hyper, **options)
