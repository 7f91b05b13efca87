"""Tiny models of real architecture classes, in float64 on one thread."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWS: dict[str, Any] = {"sliding_window": 5, "query_pre_attn_scalar": 8}
EAGER: dict[str, Any] = {"attn_implementation": "eager"}
T5_SIZES: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
FAMILIES = ("llama", "mistral", "qwen2", "gemma2", "gemma3", "t5")


def make_model(
    family: str, seed: int = 0, *, vocab: int = 40, scale: float = 4.0, max_positions: int = 64
) -> PreTrainedModel:
    """A random model: grouped queries, sliding windows of 5, soft-caps where the family has them."""
    torch.manual_seed(seed)
    sizes = SIZES | {"vocab_size": vocab, "max_position_embeddings": max_positions}
    model: PreTrainedModel
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    elif family == "mistral":  # one window for all layers, no layer types
        model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=5))
    elif family == "qwen2":
        config = Qwen2Config(**sizes, use_sliding_window=True, sliding_window=5, max_window_layers=1)
        model = Qwen2ForCausalLM(config)
    elif family == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**sizes, **WINDOWS, **EAGER))
    elif family == "gemma3":
        model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, **WINDOWS))
    else:
        model = T5ForConditionalGeneration(T5Config(**T5_SIZES, vocab_size=vocab))
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # far from uniform, so that argmax and sampling have something to decide
                parameter.mul_(scale)
    return model


def perturbed(model: PreTrainedModel, noise: float) -> PreTrainedModel:
    """A drafter that agrees with ``model`` often: the same weights with noise of relative size ``noise``."""
    drafter = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in drafter.parameters():
            if parameter.dim() > 1:
                drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(noise * parameter.std() * drawn)
    return drafter


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
