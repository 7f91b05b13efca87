"""Chunked objectives: value and gradients of whole logits, whatever the chunks and the tokens' weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from specalign.losses import LOSSES, Objective, chunked_loss, objective, reduce_tokens
from specalign.models.heads import Head

B, T, D, WIDE, V = 2, 7, 5, 6, 23

OBJECTIVES = {name: objective({name: 1.0}) for name in LOSSES} | {
    "mixture": objective({"forward_kl": 0.5, "rank_order": 1.0, "accepted_length": 0.3}, {"pairwise": 0.2}),
    "selective": objective({"forward_kl": 1.0}, keep=0.4),
    "sharp teacher": objective({"tvd": 1.0}, teacher_temperature=0.5),
}
WEIGHTS = {
    "mean": torch.ones(B, T, dtype=torch.float64),
    "masked": (torch.arange(B * T) % 3 > 0).view(B, T).double(),
    "uneven": torch.linspace(-1, 2, B * T, dtype=torch.float64).view(B, T),
    "none": torch.zeros(B, T, dtype=torch.float64),
}


class Pair:
    """A student and a teacher head over random hidden states."""

    def __init__(self, draw: Callable[..., Tensor], *, softcap: float | None = 3.0) -> None:
        self.hidden = draw(B, T, D).requires_grad_()
        self.weight = draw(V, D, scale=1.0).requires_grad_()
        self.bias = draw(V, scale=0.5).requires_grad_()
        self.student = Head(self.weight, self.bias, scale=0.7, softcap=softcap)
        self.teacher_hidden = draw(B, T, WIDE)
        self.teacher = Head(draw(V, WIDE, scale=1.0), softcap=softcap)
        self.labels = torch.arange(B * T).view(B, T) % V

    @property
    def leaves(self) -> list[Tensor]:
        return [self.hidden, self.weight, self.bias]

    def whole(self, goal: Objective, **options: Tensor) -> Tensor:
        student, teacher = self.student(self.hidden), self.teacher(self.teacher_hidden)
        return goal(student, teacher, labels=self.labels, **options)

    def chunked(self, goal: Objective, chunk_tokens: int = 4, **options: Any) -> Tensor:
        return chunked_loss(
            goal,
            (self.hidden, self.student),
            (self.teacher_hidden, self.teacher),
            labels=self.labels,
            chunk_tokens=chunk_tokens,
            **options,
        )

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, self.leaves, retain_graph=True))


@pytest.fixture
def pair(draw: Callable[..., Tensor]) -> Pair:
    return Pair(draw)


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_chunks_change_nothing(pair: Pair, name: str, weights: str) -> None:
    whole, chunked = pair.whole(OBJECTIVES[name]), pair.chunked(OBJECTIVES[name])
    torch.testing.assert_close(chunked, whole)
    token_weights = WEIGHTS[weights]
    assert_same(pair.gradients((chunked * token_weights).sum()), pair.gradients((whole * token_weights).sum()))


@pytest.mark.parametrize("chunk_tokens", [1, 5, B * T, 1000])
def test_any_chunk_size(pair: Pair, chunk_tokens: int) -> None:
    goal = OBJECTIVES["mixture"]
    chunked, whole = pair.chunked(goal, chunk_tokens), pair.whole(goal)
    assert_same(pair.gradients(chunked.mean()), pair.gradients(whole.mean()))


def test_a_second_backward_pass_gives_the_same(pair: Pair) -> None:
    loss = pair.chunked(OBJECTIVES["forward_kl"]).mean()
    assert_same(pair.gradients(loss), pair.gradients(loss))


def test_a_frozen_head_takes_uneven_weights_without_computing_again(pair: Pair) -> None:
    pair.student = Head(pair.weight.detach(), scale=0.7)
    calls = []
    inner = pair.teacher

    def counted(hidden: Tensor) -> Tensor:
        calls.append(len(hidden))
        return inner(hidden)

    goal = OBJECTIVES["jsd"]
    loss = chunked_loss(goal, (pair.hidden, pair.student), (pair.teacher_hidden, counted), chunk_tokens=4)
    (gradient,) = torch.autograd.grad((loss * WEIGHTS["uneven"]).sum(), pair.hidden)
    whole = goal(pair.student(pair.hidden), pair.teacher(pair.teacher_hidden))
    (expected,) = torch.autograd.grad((whole * WEIGHTS["uneven"]).sum(), pair.hidden)
    assert_same([gradient], [expected])
    assert sum(calls) == B * T


@pytest.mark.parametrize("name", ["forward_kl", "rank_order", "mixture"])
def test_a_mean_computes_no_logits_twice(pair: Pair, name: str) -> None:
    calls = []

    def counted(hidden: Tensor) -> Tensor:
        calls.append(len(hidden))
        return pair.teacher(hidden)

    student = (pair.hidden, pair.student)
    chunked_loss(OBJECTIVES[name], student, (pair.teacher_hidden, counted), chunk_tokens=3).mean().backward()
    assert calls == [3, 3, 3, 3, 2]


def test_only_selected_tokens_are_computed_again(pair: Pair) -> None:
    calls = []
    inner = pair.teacher

    def counted(hidden: Tensor) -> Tensor:
        calls.append(len(hidden))
        return inner(hidden)

    chunked_loss(
        objective({"forward_kl": 1.0}, keep=0.5),
        (pair.hidden, pair.student),
        (pair.teacher_hidden, counted),
        chunk_tokens=4,
    ).mean().backward()
    assert sum(calls) == B * T + B * T // 2


def test_sequences_and_references_reach_the_objective(pair: Pair, draw: Callable[..., Tensor]) -> None:
    ids = torch.tensor([0, 0, 0, 1, 1, 1, 1]).expand(B, T)
    goal = objective({"accepted_length": 1.0}, keep=0.6)
    options: dict[str, Any] = {"sequence_ids": ids, "reference_loss": draw(B, T)}
    whole, chunked = pair.whole(goal, **options), pair.chunked(goal, **options)
    torch.testing.assert_close(chunked, whole)
    assert_same(pair.gradients(chunked.sum()), pair.gradients(whole.sum()))


def test_cross_entropy_needs_no_teacher(pair: Pair) -> None:
    goal = OBJECTIVES["cross_entropy"]
    assert not goal.needs_teacher
    alone = chunked_loss(goal, (pair.hidden, pair.student), None, labels=pair.labels, chunk_tokens=4)
    torch.testing.assert_close(alone, pair.whole(goal))


def test_without_gradients_nothing_is_differentiated(pair: Pair) -> None:
    with torch.no_grad():
        loss = pair.chunked(OBJECTIVES["tvd"])
    assert not loss.requires_grad
    torch.testing.assert_close(loss, pair.whole(OBJECTIVES["tvd"]))


def test_no_tokens_at_all(pair: Pair) -> None:
    nothing = pair.hidden.reshape(-1, D)[:0]
    loss = chunked_loss(
        OBJECTIVES["forward_kl"],
        (nothing, pair.student),
        (pair.teacher_hidden.reshape(-1, WIDE)[:0], pair.teacher),
    )
    assert loss.shape == (0,)
    total = reduce_tokens(loss, torch.ones(0, dtype=torch.bool))
    assert total == 0
    assert all(not gradient.any() for gradient in pair.gradients(total))


def test_the_teacher_gets_no_gradient(pair: Pair) -> None:
    pair.teacher_hidden.requires_grad_()
    pair.chunked(OBJECTIVES["reverse_kl"]).sum().backward()
    assert pair.teacher_hidden.grad is None


@pytest.mark.parametrize("name", ["forward_kl", "accepted_length"])
def test_autocast_keeps_the_master_weights_precise(pair: Pair, name: str) -> None:
    """bf16 products, float32 sums over chunks: the gradient stays near the float32 one and in its dtype."""
    weight = pair.weight.detach().float().requires_grad_()
    hidden = pair.hidden.detach().float().requires_grad_()
    student, teacher = Head(weight), Head(pair.teacher.weight.float())
    inputs = (hidden, student), (pair.teacher_hidden.float(), teacher)
    goal = OBJECTIVES[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_loss(goal, *inputs, chunk_tokens=4)
    (rough,) = torch.autograd.grad(loss.mean(), weight)
    (exact,) = torch.autograd.grad(chunked_loss(goal, *inputs, chunk_tokens=4).mean(), weight)
    assert loss.dtype == rough.dtype == torch.float32
    error = (rough - exact).norm() / exact.norm()
    assert 0 < error < 0.03


def test_bfloat16_weights(pair: Pair) -> None:
    weight = pair.weight.detach().bfloat16().requires_grad_()
    hidden = pair.hidden.detach().bfloat16().requires_grad_()
    teacher = (pair.teacher_hidden.bfloat16(), Head(pair.teacher.weight.bfloat16()))
    goal = OBJECTIVES["forward_kl"]
    loss = chunked_loss(goal, (hidden, Head(weight)), teacher, chunk_tokens=4)
    (ours,) = torch.autograd.grad(loss.mean(), weight)
    whole = goal(Head(weight)(hidden), teacher[1](teacher[0]))
    (theirs,) = torch.autograd.grad(whole.mean(), weight)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(loss, whole)
    assert (ours - theirs).norm() < 0.01 * theirs.norm()
