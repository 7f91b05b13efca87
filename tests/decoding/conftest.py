"""Tiny models of real architecture classes, in float64 on one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specalign.models.tiny import FAMILIES, make_model, perturbed


def next_logits(model: PreTrainedModel, prompt: list[int], new: list[int]) -> torch.Tensor:
    """Logits [V] after ``prompt`` and ``new`` tokens, by one forward call without any cache."""
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            start = torch.tensor([[0, *new]])
            return model(input_ids=torch.tensor([prompt]), decoder_input_ids=start).logits[0, -1]
        return model(input_ids=torch.tensor([prompt + new]), use_cache=False).logits[0, -1]


def naive_greedy(model: PreTrainedModel, prompt: list[int], n: int, eos: tuple[int, ...] = (2,)) -> list[int]:
    """Greedy decoding at its plainest."""
    new: list[int] = []
    while len(new) < n and not (new and new[-1] in eos):
        new.append(int(next_logits(model, prompt, new).argmax()))
    return new


@pytest.fixture(name="naive_greedy", scope="session")
def naive_greedy_fixture() -> Callable[..., list[int]]:
    """naive_greedy, each output computed once."""
    known: dict[tuple[Any, ...], list[int]] = {}

    def get(model: PreTrainedModel, prompt: list[int], n: int, eos: tuple[int, ...] = (2,)) -> list[int]:
        key = (id(model), tuple(prompt), n, eos)
        if key not in known:
            known[key] = naive_greedy(model, prompt, n, eos)
        return known[key]

    return get


@pytest.fixture(name="next_logits", scope="session")
def next_logits_fixture() -> Callable[..., torch.Tensor]:
    """next_logits."""
    return next_logits


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    return request.param


@pytest.fixture(scope="session")
def build() -> Callable[..., PreTrainedModel]:
    """make_model, each model made once."""
    made: dict[tuple[Any, ...], PreTrainedModel] = {}

    def get(family: str, seed: int = 0, noise: float = 0.0, **options: Any) -> PreTrainedModel:
        key = (family, seed, noise, *options.items())
        if key not in made:
            model = make_model(family, seed, **options)
            made[key] = perturbed(model, noise) if noise else model
        return made[key]

    return get
