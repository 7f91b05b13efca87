"""Tiny random models of real architecture classes, for tests and for ``specalign-bench selftest``."""

from __future__ import annotations

import copy
from typing import Any

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
    Qwen3Config,
    Qwen3ForCausalLM,
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
    """A random model in float64: grouped queries, sliding windows of 5, soft-caps where the family has them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # transformers draws initial weights from the global generator
        model = _untrained(family, SIZES | {"vocab_size": vocab, "max_position_embeddings": max_positions})
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # far from uniform, so that argmax and sampling have something to decide
                parameter.mul_(scale)
    return model


def _untrained(family: str, sizes: dict[str, Any]) -> PreTrainedModel:
    model: PreTrainedModel
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    elif family == "mistral":  # one window for all layers, no layer types
        model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=5))
    elif family == "qwen2":
        config = Qwen2Config(**sizes, use_sliding_window=True, sliding_window=5, max_window_layers=1)
        model = Qwen2ForCausalLM(config)
    elif family == "qwen3":  # norms on queries and keys
        model = Qwen3ForCausalLM(Qwen3Config(**sizes))
    elif family == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**sizes, **WINDOWS, **EAGER))
    elif family == "gemma3":
        model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, **WINDOWS))
    else:
        model = T5ForConditionalGeneration(T5Config(**T5_SIZES, vocab_size=sizes["vocab_size"]))
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
