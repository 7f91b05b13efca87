"""What the target's step gives beside its logits: the states of its layers, as a plain forward pass has them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from specalign.decoding import Shapes, Stepper, make_stepper
from specalign.decoding.session import Session
from specalign.models.properties import decoder_layers

Build = Callable[..., PreTrainedModel]
PROMPTS = [[5, 9, 31, 7, 7, 12, 9], [3, 8, 20], [17], [5, 9, 31]]
"""Ragged, one of a single token, one that begins another."""
GROWN = [4, 6, 11, 2, 8]
READS = (0, 1, 2, 3)
"""All of a model of three layers: embeddings, two in between, and what leaves the last."""


@torch.inference_mode()
def plain_states(model: PreTrainedModel, ids: list[int]) -> dict[int, Tensor]:
    """Layer -> [T, h], by transformers itself; its last one is normed, so that ours is normed to be compared."""
    output = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    return {place: output.hidden_states[place][0] for place in READS}


def comparable(model: PreTrainedModel, place: int, states: Tensor) -> Tensor:
    last = place == len(decoder_layers(model))
    return model.get_decoder().norm(states) if last else states


def require_states(
    model: PreTrainedModel, session: Session, row: int, text: list[int], positions: range
) -> None:
    """Those of the session's last call at ``positions`` of a row whose text is ``text``."""
    whole = plain_states(model, text)
    first = session.states_from[row]
    for place in READS:
        ours = comparable(model, place, session.states[place][row, positions.start - first :][: len(positions)])
        theirs = whole[place][positions.start : positions.stop]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@contextmanager
def session_of(stepper: Stepper) -> Iterator[Session]:
    with torch.inference_mode():
        yield Session.start(stepper, PROMPTS, 16, reads=READS)


def require_all_states(model: PreTrainedModel, stepper: Stepper) -> None:
    """After the prefill, a step, a rollback by different amounts, a longer step, and with rows gone."""
    texts = [[*prompt, *GROWN] for prompt in PROMPTS]
    ids = torch.tensor([[prompt[-1], *GROWN] for prompt in PROMPTS])
    with session_of(stepper) as session:
        for row, text in enumerate(texts):
            require_states(model, session, row, text, range(len(PROMPTS[row]) - 1))
        before = list(session.lengths)
        session.extend(ids[:, :3])
        for row, text in enumerate(texts):
            require_states(model, session, row, text, range(before[row], before[row] + 3))
        kept = [length + 1 + row % 2 for row, length in enumerate(before)]
        session.rollback(kept)
        fed = torch.stack([ids[row, 1 + row % 2 :][:4] for row in range(len(texts))])
        session.extend(fed)
        for row, text in enumerate(texts):
            require_states(model, session, row, text, range(kept[row], kept[row] + 4))
        session.keep([3, 0])
        for row, old in enumerate((3, 0)):
            require_states(model, session, row, texts[old], range(kept[old], kept[old] + 4))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2", "gemma3"])
def test_states_are_those_of_a_plain_forward_pass(build: Build, family: str) -> None:
    model = build(family)
    require_all_states(model, make_stepper(model))


def test_shifted_states_are_told_apart(build: Build) -> None:
    """Negative control: the comparison sees states that are one position off."""
    model = build("llama")
    with session_of(make_stepper(model)) as session:
        session.states_from = [start - 1 for start in session.states_from]
        with pytest.raises(AssertionError):
            require_states(model, session, 0, [*PROMPTS[0], *GROWN], range(2, 4))


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_a_compiled_step_gives_them_in_the_same_graph(build: Build, family: str) -> None:
    """Fed more than its largest size too; nothing is compiled again."""
    model = copy.deepcopy(build(family))  # what is compiled is hooked for good
    for prompt in PROMPTS:
        plain_states(model, [*prompt, *GROWN])  # transformers' own hooks, before anything is traced
    stepper = make_stepper(model, "compiled", shapes=Shapes((1, 3), 48, n_rows=4), reads=READS)
    n_graphs = counters["stats"]["unique_graphs"]
    with session_of(stepper) as session:
        before = list(session.lengths)
        session.extend(torch.tensor([[prompt[-1], *GROWN] for prompt in PROMPTS]))
    assert counters["stats"]["unique_graphs"] == n_graphs
    for row, prompt in enumerate(PROMPTS):
        require_states(model, session, row, [*prompt, *GROWN], range(before[row], before[row] + 6))


def test_what_is_not_asked_for_is_not_kept(build: Build) -> None:
    model = build("llama", 7)  # transformers hooks those whose states it was asked for, for good
    with torch.inference_mode():
        session = Session.start(make_stepper(model), PROMPTS, 4)
        session.extend(torch.tensor([[4]] * len(PROMPTS)))
    assert session.states == {}
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in decoder_layers(model))


def test_states_that_cannot_be_had_are_refused(build: Build) -> None:
    llama = make_stepper(build("llama"))
    with torch.inference_mode():
        with pytest.raises(ValueError, match=r"LlamaForCausalLM has states 0\.\.3, not \(1, 4\)"):
            Session.start(llama, PROMPTS, 4, reads=(1, 4))
        with pytest.raises(ValueError, match="encoder-decoder"):
            Session.start(make_stepper(build("t5")), PROMPTS, 4, reads=(1,))
        plain = make_stepper(build("llama"), "compiled", shapes=Shapes((1,), 32, n_rows=4))
        with pytest.raises(ValueError, match=r"compiled without the states of layers \[2\]"):
            Session.start(plain, PROMPTS, 4, reads=(2,))
