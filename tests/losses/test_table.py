"""What every objective of the table promises, whatever its formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specalign.losses import LOSSES, NEEDS, hyper_parameters

T, V = 5, 11
DOCS = Path(__file__).parents[2] / "docs"
DIVERGENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "forward_kl": ("forward_kl", {}),
    "forward_kl hot": ("forward_kl", {"temperature": 2.0}),
    "reverse_kl": ("reverse_kl", {}),
    "jsd": ("jsd", {}),
    "jsd 0.1": ("jsd", {"beta": 0.1, "temperature": 0.7}),
    "jsd 0": ("jsd", {"beta": 0}),
    "jsd 1": ("jsd", {"beta": 1}),
    "tvd": ("tvd", {}),
    "skew_forward_kl": ("skew_forward_kl", {}),
    "skew_reverse_kl": ("skew_reverse_kl", {"skew": 0.4}),
    "lk_alpha": ("lk_alpha", {}),
    "lk_hybrid": ("lk_hybrid", {}),
    "calibration alone": ("rank_order", {"ranking": 0}),
}
FORMS: dict[str, tuple[str, dict[str, Any]]] = DIVERGENCES | {
    "cross_entropy": ("cross_entropy", {}),
    "accepted_length": ("accepted_length", {"gamma": 3}),
    "rank_order": ("rank_order", {}),
    "rank_order pure": ("rank_order", {"calibration": 0, "top_k": 4}),
    "rank_order contrast": (
        "rank_order",
        {"top_k": 3, "n_negatives": 2, "pairwise": 1.0, "margin": 0.5, "tau": 0.5},
    ),
    "rank_order no rest": ("rank_order", {"rest": False, "top_k": 3, "n_negatives": 2, "weight_power": 0.5}),
}


def call(form: str, student: Tensor, teacher: Tensor) -> Tensor:
    name, hyper = FORMS[form]
    labels = torch.arange(student[..., 0].numel()).view(student.shape[:-1]) % student.shape[-1]
    return LOSSES[name](student, teacher, labels=labels, **hyper)


def test_every_objective_is_tested_here() -> None:
    assert {name for name, _ in FORMS.values()} == set(LOSSES)


def test_every_objective_is_documented_with_its_picture() -> None:
    text = (DOCS / "objectives.md").read_text(encoding="utf-8")
    for name in LOSSES:
        assert f"`{name}`" in text
        assert f"](pictures/{name}.png)" in text
        assert (DOCS / "pictures" / f"{name}.png").stat().st_size < 100_000


@pytest.mark.parametrize("form", FORMS)
def test_one_number_a_token_in_float32_or_better(form: str, draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(2, T, V), draw(2, T, V)
    precise = call(form, student, teacher)
    assert precise.shape == (2, T)
    assert precise.dtype == torch.float64
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.2)):
        rough = call(form, student.to(dtype), teacher.to(dtype))
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough.double(), precise, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_only_differences_of_logits_matter(form: str, draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(T, V), draw(T, V)
    shifted = call(form, student + draw(T, 1), teacher + draw(T, 1))
    torch.testing.assert_close(shifted, call(form, student, teacher))


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"cross_entropy"}))  # its labels name tokens
def test_token_names_do_not_matter(form: str, draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(T, V), draw(T, V)
    order = torch.randperm(V, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(call(form, student[:, order], teacher[:, order]), call(form, student, teacher))


@pytest.mark.parametrize("form", DIVERGENCES)
def test_zero_at_equality_and_positive_elsewhere(form: str, draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(T, V), draw(T, V)
    assert call(form, student, teacher).min() > 1e-3
    torch.testing.assert_close(call(form, teacher, teacher), torch.zeros(T).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", DIVERGENCES)
def test_the_gradient_vanishes_at_equality(form: str, draw: Callable[..., Tensor]) -> None:
    """A minimum, and where the loss has a kink (TVD), the subgradient that autograd takes is 0 too."""
    teacher = draw(T, V)
    student = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(form, student, teacher).sum(), student)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"lk_hybrid"}))
def test_gradients_are_those_of_finite_differences(form: str, draw: Callable[..., Tensor]) -> None:
    """In float64. lk_hybrid stops a gradient that finite differences see: test_lk.py has its closed form."""
    teacher = draw(3, V)
    assert torch.autograd.gradcheck(lambda student: call(form, student, teacher), draw(3, V).requires_grad_())


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_of_a_token_sums_to_zero(form: str, draw: Callable[..., Tensor]) -> None:
    """Adding a constant to the logits changes nothing, so no gradient points that way."""
    student = draw(T, V).requires_grad_()
    (gradient,) = torch.autograd.grad(call(form, student, draw(T, V)).sum(), student)
    assert gradient.sum(-1).abs().max() < 1e-12
    assert gradient.abs().max() > 1e-4


def extremes() -> dict[str, tuple[Tensor, Tensor]]:
    ramp, one_hot = torch.linspace(-1e4, 1e4, V), torch.full((V,), -1e4)
    one_hot[3] = 1e4
    other = one_hot.roll(4)
    excluded = torch.linspace(-1, 2, V)
    excluded[7:] = -torch.inf
    zeros = torch.zeros(V)
    pairs = {
        "opposite ramps": (ramp, -ramp),
        "one-hot teacher": (zeros, one_hot),
        "one-hot student": (one_hot, zeros),
        "equal one-hots": (one_hot, one_hot),
        "disjoint one-hots": (other, one_hot),
        "excluded on both sides": (excluded, excluded.flip(0).roll(-4)),
        "excluded for the student": (excluded, zeros),
        "excluded for the teacher": (zeros, excluded),
        "all but one excluded": (zeros.where(torch.arange(V) == 1, -torch.inf), zeros),
    }
    return {name: (student.repeat(T, 1), teacher.repeat(T, 1)) for name, (student, teacher) in pairs.items()}


@pytest.mark.parametrize("case", extremes())
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_stay_finite(form: str, case: str) -> None:
    student, teacher = extremes()[case]
    student.requires_grad_()
    loss = call(form, student, teacher)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert not gradient[student.isneginf()].any()


@pytest.mark.parametrize("form", DIVERGENCES)
def test_ids_excluded_on_both_sides_count_for_nothing(form: str, draw: Callable[..., Tensor]) -> None:
    student, teacher = draw(T, V), draw(T, V)
    outside = torch.full((T, 3), -torch.inf, dtype=torch.float64)
    padded = call(form, torch.cat([student, outside], -1), torch.cat([teacher, outside], -1))
    torch.testing.assert_close(padded, call(form, student, teacher))


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        (name, parameter)
        for name in LOSSES
        for parameter in hyper_parameters(name)
        if parameter not in ("rest", "margin")  # any value is meaningful
    ],
)
def test_a_value_out_of_range_is_refused(name: str, parameter: str, draw: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=parameter):
        LOSSES[name](draw(T, V), draw(T, V), **{parameter: -1})


@pytest.mark.parametrize("name", LOSSES)
def test_the_table_says_what_a_loss_looks_at(name: str, draw: Callable[..., Tensor]) -> None:
    """Found by changing it: the teacher's logits at the position, anything at the positions after it."""
    student, teacher, labels = draw(T, V), draw(T, V), torch.arange(T) % V
    loss = LOSSES[name](student, teacher, labels=labels)
    other = LOSSES[name](student, draw(T, V), labels=labels)
    assert NEEDS[name].teacher == (not torch.equal(loss, other))
    windows = NEEDS[name].windows
    moved = LOSSES[name](torch.cat([student[:1], draw(T - 1, V)]), teacher, labels=labels)
    assert (windows is not None) == (not torch.equal(loss[0], moved[0]))
    if windows is not None:
        torch.testing.assert_close(windows.gather(windows.column(student, teacher)), loss)
        span = windows.span()
        tail = torch.cat([student[:span], draw(T - span, V)]) if span < T else student
        assert torch.equal(LOSSES[name](tail, teacher, labels=labels)[0], loss[0])
