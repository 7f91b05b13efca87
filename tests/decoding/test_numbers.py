"""Logits that are NaN or infinite never become a token: they are an error that names the model."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from specalign.decoding import DraftCosts, ModelDrafter, PromptLookup, generate
from specalign.decoding.probe import require_decodable
from specalign.errors import UserError
from specalign.models.tiny import make_model

Build = Callable[..., PreTrainedModel]
PROMPTS = [[5, 9, 31, 7], [3, 8, 5, 9, 31]]


def broken(value: float, seed: int = 0) -> PreTrainedModel:
    """A model that breaks after it was loaded and tried, as half precision does on some texts."""
    model = make_model("llama", seed)
    require_decodable(model)
    nn.init.constant_(model.model.norm.weight, value)
    return model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_target_of_no_numbers_is_named(build: Build, temperature: float, value: float) -> None:
    model = broken(value)
    for drafter in (None, PromptLookup(), ModelDrafter(build("llama"))):
        with pytest.raises(UserError, match=r"the target, LlamaForCausalLM: its logits are no finite numbers"):
            generate(model, drafter, PROMPTS, temperature=temperature, max_new_tokens=4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("adaptive", [None, DraftCosts(0.1)])
def test_a_drafter_of_no_numbers_is_named(
    build: Build, temperature: float, value: float, adaptive: DraftCosts | None
) -> None:
    drafter = ModelDrafter(broken(value, 1), adaptive=adaptive)
    with pytest.raises(UserError, match=r"the drafter, LlamaForCausalLM: its logits are no finite numbers"):
        generate(build("llama"), drafter, PROMPTS, temperature=temperature, max_new_tokens=8)


def test_the_first_call_finds_a_model_that_was_broken_before() -> None:
    model = make_model("llama")
    nn.init.constant_(model.model.norm.weight, torch.nan)
    with pytest.raises(UserError, match=re.escape("no finite numbers (NaN or infinity) in float64")):
        generate(model, None, PROMPTS[0])
