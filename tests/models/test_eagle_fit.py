"""The closed-form start of a head: what it says of its error is so, and it is worth starting from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.models.eagle import EagleHead
from specalign.models.eagle_fit import Fit, fit_head
from specalign.models.eagle_start import head_config, new_head
from specalign.models.heads import head_of, hidden_states
from specalign.models.states import states_entering
from specalign.models.tiny import make_model

READS = (0, 1, 3)


def texts(teacher: PreTrainedModel, seed: int, n: int = 24) -> list[tuple[Tensor, Tensor]]:
    """What the teacher itself would say next, mostly; rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (n, 3), generator=generator)
    for _ in range(15):
        p = head_of(teacher)(hidden_states(teacher, input_ids=ids)[:, -1]).softmax(-1)
        ids = torch.cat([ids, torch.multinomial(p.detach(), 1, generator=generator)], 1)
    mask = torch.ones_like(ids)
    mask[: n // 2, -4:] = 0
    return [(ids[::2], mask[::2]), (ids[1::2], mask[1::2])]


def heads(family: str) -> tuple[PreTrainedModel, EagleHead, EagleHead, Fit]:
    teacher = make_model(family, scale=2.0).requires_grad_(False)
    teacher.get_parameter("model.embed_tokens.weight").add_(0.1)  # real ones have a mean too
    config = head_config(teacher.config, READS)
    drawn, fitted = (new_head(teacher, config, seed=1) for _ in range(2))
    calls: list[int] = []
    found = fit_head(fitted, teacher, texts(teacher, 0), progress=lambda: calls.append(1))
    assert len(calls) == 4 * 2
    return teacher, drawn, fitted, found


@torch.no_grad()
def output_error(head: EagleHead, teacher: PreTrainedModel, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Mean of |what the head puts out - what leaves the teacher's last layer|^2 / |that|^2."""
    errors = []
    for ids, mask in batches:
        with states_entering(teacher, READS) as caught:
            hidden_states(teacher, input_ids=ids, attention_mask=mask)
        read = torch.cat([caught[layer] for layer in READS], -1)[:, :-1]
        positions = torch.arange(ids.shape[1] - 1).expand(len(ids), -1)
        made = head(ids[:, 1:], head.project(read), position_ids=positions, attention_mask=None)
        wanted = caught[3][:, 1:]
        error = (made - wanted).square().sum(-1) / wanted.square().sum(-1)
        errors.append(error[mask[:, 1:].bool()])
    return float(torch.cat(errors).mean())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen2"])
def test_a_fit_reaches_what_it_says_and_more_than_chance(family: str) -> None:
    teacher, drawn, fitted, found = heads(family)
    seen, unseen = texts(teacher, 0), texts(teacher, 1)
    assert output_error(fitted, teacher, seen) == pytest.approx(found.output, rel=1e-3)
    assert output_error(fitted, teacher, unseen) < output_error(drawn, teacher, unseen)
    assert found.attended < 1


def test_an_entry_attends_to_itself() -> None:
    teacher, _, fitted, _ = heads("llama")
    ids, _ = texts(teacher, 1)[0]
    with states_entering(teacher, READS) as caught:
        hidden_states(teacher, input_ids=ids)
    hidden = fitted.project(torch.cat([caught[layer] for layer in READS], -1)[:, :-1])
    positions = torch.arange(ids.shape[1] - 1).expand(len(ids), -1)
    alone = torch.eye(ids.shape[1] - 1, dtype=torch.bool)[None, None]
    with torch.no_grad():
        whole, itself = (
            fitted(ids[:, 1:], hidden, position_ids=positions, attention_mask=mask) for mask in (None, alone)
        )
    assert (whole - itself).norm() < 0.2 * itself.norm()


def test_no_two_queries_of_a_key_are_alike() -> None:
    _, _, fitted, _ = heads("llama")
    query = fitted.get_parameter("layers.0.self_attn.q_proj.weight").view(4, 8, 64)
    assert not torch.allclose(query[0], query[1])
