"""A loss and its backward pass never wait for the device: proved with fake tensors, without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from specalign.losses import LOSSES, objective, reduce_tokens
from specalign.models.tiny import make_model
from specalign.training.rows import Row, lay_out
from specalign.training.scoring import Pair, per_token_loss, states
from tests.decoding.test_synchronisation import NoBlockingCopies

ROWS = [Row((1, 2, 3, 4, 5, 6, 7), 3), Row((1, 2, 3, 4, 5), 3)]
CHUNKED = [name for name in LOSSES if objective({name: 1.0}).needs_teacher and objective({name: 1.0}).horizon]


@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("name", CHUNKED)
def test_a_loss_never_waits(name: str, trimmed: bool) -> None:
    config, goal = make_model("llama").config, objective({name: 1.0})
    kind = type(make_model("llama"))
    with FakeTensorMode():
        student, teacher = kind(config), kind(config).requires_grad_(False)
        ids = torch.arange(0, 40, 3) if trimmed else None
        pair = Pair(student, teacher, 40, ids)
        vars(pair)["known_vocabulary"] = ids  # which it learns once a run
        with NoBlockingCopies():
            layout = lay_out(ROWS, packed=True)
            with torch.no_grad():
                known = states(teacher, layout)
            losses = per_token_loss(pair, layout, goal, known, chunk_tokens=2)
            mask = torch.ones_like(layout.labels, dtype=torch.bool)
            reduce_tokens(losses, mask, n_tokens=6.0).backward()
    assert losses.shape == (6,)
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_the_question_whether_weights_are_equal_waits() -> None:
    """The proof has power: without the promise the backward pass asks the device."""
    real = make_model("llama")
    with FakeTensorMode():
        model = type(real)(real.config)
        pair, layout = Pair(model, model, 40), lay_out(ROWS, packed=True)
        losses = per_token_loss(pair, layout, objective({"cross_entropy": 1.0}), None)
        with pytest.raises(DataDependentOutputException):
            losses.sum().backward()


def test_a_broken_promise_is_an_error() -> None:
    student, teacher = make_model("llama"), make_model("llama", 1).requires_grad_(False)
    layout = lay_out(ROWS, packed=True)
    losses = per_token_loss(
        Pair(student, teacher, 40), layout, objective({"forward_kl": 1.0}), states(teacher, layout).detach()
    )
    with pytest.raises(RuntimeError, match="against the caller's promise"):
        (losses * torch.arange(1.0, 7.0)).sum().backward()
