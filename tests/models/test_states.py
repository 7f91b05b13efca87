"""The states between a model's layers, caught as they pass or left in a call's cache: transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from specalign.models.heads import hidden_states
from specalign.models.properties import decoder_layers
from specalign.models.states import States, reading, states_entering
from specalign.models.tiny import make_model

IDS = torch.tensor([[5, 9, 31, 7], [3, 8, 20, 11]])
READS = (0, 1, 3)


class Noted(DynamicCache):
    """A cache in which states are left."""

    def __init__(self) -> None:
        super().__init__()
        self.states: States = {}


def hooks(model: PreTrainedModel) -> int:
    return sum(len(each._forward_pre_hooks) + len(each._forward_hooks) for each in decoder_layers(model))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
def test_states_are_those_between_the_layers(family: str) -> None:
    target, cache = make_model(family), Noted()
    with states_entering(target, READS) as caught, reading(target, READS):
        target(input_ids=IDS, past_key_values=cache)
        assert set(caught) == set(cache.states) == set(READS)
        assert all(
            caught[layer] is cache.states[layer] for layer in READS
        )  # the same tensors: nothing is copied
        target(input_ids=IDS)
        assert all(torch.allclose(caught[layer], cache.states[layer]) for layer in READS)
    assert hooks(target) == 0
    theirs = target(IDS, output_hidden_states=True).hidden_states
    for layer in (0, 1):
        torch.testing.assert_close(caught[layer], theirs[layer])
    torch.testing.assert_close(target.get_decoder().norm(caught[3]), hidden_states(target, input_ids=IDS))


def test_layers_that_a_model_lacks_are_refused() -> None:
    target = make_model("llama")
    for layers in ((0, 4), (-1,)):
        with pytest.raises(ValueError, match=r"LlamaForCausalLM has states 0\.\.3, not"):
            states_entering(target, layers).__enter__()
    assert hooks(target) == 0
