"""Drafters for other engines: the target's width, and rows that were never trained never win."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from specalign.errors import UserError
from specalign.models import servable
from specalign.models.heads import head_of
from specalign.models.servable import MASS, block, is_blocked, response_states, verified
from specalign.models.tiny import make_model

KEPT = torch.arange(0, 40, 3)
FAMILIES = ["llama", "qwen2", "gemma2", "gemma3"]


def states_of(model: PreTrainedModel, seed: int, n: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(3, 40, (n, 12), generator=generator).tolist()
    return response_states(model, [(ids[:4], ids[4:]) for ids in draw])


def on_one_side(model: PreTrainedModel) -> PreTrainedModel:
    """What final states of trained models have in common, and random ones do not: a direction."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    with torch.no_grad():
        embedding.weight[:, 0] += 8 * embedding.weight.std()
    return model


@pytest.fixture(params=FAMILIES)
def drafter(request: pytest.FixtureRequest) -> PreTrainedModel:
    return on_one_side(make_model(request.param))


@torch.no_grad()
@pytest.mark.parametrize("width", [36, 40, 47])
def test_the_full_head_drafts_what_the_trimmed_one_does(drafter: PreTrainedModel, width: int) -> None:
    """Of any width: q over all rows is q over the trained ones, but for a mass below the bound."""
    kept = KEPT[width > KEPT]
    made, held_out = states_of(drafter, 1), states_of(drafter, 2)
    trimmed = head_of(drafter, kept)
    expected = trimmed(held_out.to(trimmed.weight)).softmax(-1)
    blocked = block(drafter, width, kept, made)
    assert blocked.sum() == width - len(kept)
    q = head_of(drafter)(held_out.to(trimmed.weight)).softmax(-1)
    assert q.shape[-1] == width
    assert torch.equal(kept[expected.argmax(-1)], q.argmax(-1))
    torch.testing.assert_close(q[:, kept], expected, rtol=2 * MASS, atol=0)
    found = verified(drafter, blocked, held_out)
    assert 0 < found.mean_mass <= found.largest_mass <= MASS
    assert (found.n_rows, found.n_states) == (width - len(kept), len(held_out))


def test_untouched_rows_would_win(drafter: PreTrainedModel) -> None:
    """The control: the head as training left it."""
    with pytest.raises(UserError, match="never trained would be drafted"):
        verified(drafter, is_blocked(40, 40, KEPT), states_of(drafter, 2))


@torch.no_grad()
def test_the_worst_state_decides(drafter: PreTrainedModel) -> None:
    """One state at which the rows have a mass of 1 %, among so many others that the mean says nothing of it."""
    blocked, held_out = block(drafter, 40, KEPT, states_of(drafter, 1)), states_of(drafter, 2)
    head = head_of(drafter)
    line = torch.linspace(1, -1, 400)[:, None] * held_out[0]
    masses = head(line.to(head.weight)).softmax(-1)[:, blocked].sum(-1)
    (worst,) = line[masses > 0.01][:1]
    assert not blocked[head(worst.to(head.weight)).argmax()]
    many = torch.cat([held_out] * 50)
    assert verified(drafter, blocked, many).largest_mass < MASS
    with pytest.raises(UserError, match=r"at 0 of [\d,]+ held-out states"):
        verified(drafter, blocked, torch.cat([many, worst[None]]))


def test_the_folder_loads_as_it_is(drafter: PreTrainedModel, tmp_path: Path) -> None:
    ids = torch.tensor([[5, 9, 31, 7]])
    block(drafter, 47, KEPT, states_of(drafter, 1))
    with torch.inference_mode():
        expected = drafter(input_ids=ids).logits
    drafter.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.config.get_text_config().vocab_size == loaded.get_input_embeddings().num_embeddings == 47
    with torch.inference_mode():
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_padding_alone_keeps_what_was_tied(family: str) -> None:
    """Rows beyond the drafter's own are no inputs: one table serves both ends, as before."""
    model = on_one_side(make_model(family))
    before = head_of(model).weight.clone()
    tied = head_of(model).weight is model.get_input_embeddings().weight
    blocked = block(model, 47, None, states_of(model, 1))
    assert blocked.tolist() == [False] * 40 + [True] * 7
    assert torch.equal(head_of(model).weight[:40], before)
    assert (head_of(model).weight is model.get_input_embeddings().weight) == tied
    verified(model, blocked, states_of(model, 2))


def test_a_head_with_biases_needs_no_states() -> None:
    model = make_model("llama")
    old = head_of(model).weight
    output = nn.Linear(old.shape[1], old.shape[0], dtype=old.dtype)
    output.weight.data.copy_(old.data)
    model.set_output_embeddings(output)
    blocked = block(model, 40, KEPT, torch.empty(0, old.shape[1]))
    assert verified(model, blocked, states_of(model, 2)).largest_mass == 0


def test_states_on_both_sides_are_refused() -> None:
    model = make_model("llama")
    states = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="no row loses at every state"):
        block(model, 40, KEPT, torch.cat([states, -states]))


def test_a_soft_cap_that_is_too_high_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servable, "MASS", 1e-30)
    model = on_one_side(make_model("gemma2"))
    with pytest.raises(UserError, match="soft-cap"):
        block(model, 40, KEPT, states_of(model, 1))
