"""Heads: hidden states through a Head are the model's own logits, and two heads meet on their common ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from specalign.models.heads import Head, common_heads, head_of, hidden_states, known_ids

V = 31
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
T5_SIZES: dict[str, Any] = {
    "vocab_size": V,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
CAUSAL: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {"final_logit_softcapping": 3.0, "attn_implementation": "eager"},
    ),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {}),
    "gemma3 capped": (Gemma3ForCausalLM, Gemma3TextConfig, {"final_logit_softcapping": 2.0}),
    "cohere": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25}),
    "granite": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 4.0}),
}


def causal(name: str) -> PreTrainedModel:
    kind, config, changes = CAUSAL[name]
    torch.manual_seed(3)
    return kind(config(**{**SIZES, **changes})).eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(3, V, (2, 6), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_head_gives_the_models_logits(name: str, tokens: Tensor) -> None:
    model = causal(name)
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    with torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=mask).logits
        hidden = hidden_states(model, input_ids=tokens, attention_mask=mask)
        logits = head_of(model)(hidden)
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)
    assert logits.std() > 0.01


@pytest.mark.parametrize("tied", [True, False])
def test_t5_scales_its_output_only_where_the_embeddings_are_tied(tied: bool, tokens: Tensor) -> None:
    torch.manual_seed(3)
    model = T5ForConditionalGeneration(T5Config(**{**T5_SIZES, "tie_word_embeddings": tied})).eval()
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask, "decoder_input_ids": tokens.flip(-1)}
    with torch.no_grad():
        logits = head_of(model)(hidden_states(model, **inputs))
        expected = model(**inputs).logits
    assert head_of(model).scale == (16**-0.5 if tied else 1.0)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_head_with_bias(tokens: Tensor) -> None:
    model = causal("llama")
    model.lm_head = torch.nn.Linear(16, V, bias=True)
    with torch.no_grad():
        logits = head_of(model)(hidden_states(model, input_ids=tokens))
        torch.testing.assert_close(logits, model(input_ids=tokens).logits, rtol=1e-4, atol=1e-5)


def test_a_trimmed_head_is_a_selection_of_logits_and_reaches_the_whole_weight(tokens: Tensor) -> None:
    model, ids = causal("gemma2"), torch.tensor([2, 3, 11, 30])
    head = head_of(model, ids)
    logits = head(hidden_states(model, input_ids=tokens))
    with torch.no_grad():
        torch.testing.assert_close(logits, model(input_ids=tokens).logits[..., ids], rtol=1e-4, atol=1e-5)
    logits.sum().backward()
    gradient = model.get_output_embeddings().weight.grad
    assert gradient[ids].abs().sum(-1).min() > 0


def heads(student_width: int, teacher_width: int, ids: Tensor | None = None) -> tuple[Head, Head]:
    generator = torch.Generator().manual_seed(1)
    student = Head(
        torch.randn(student_width, 4, generator=generator), torch.arange(float(student_width)), ids=ids
    )
    return student, Head(torch.randn(teacher_width, 6, generator=generator), softcap=2.0)


def logits_of(pair: tuple[Head, Head]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(3, 4, generator=generator), torch.randn(3, 6, generator=generator)
    return pair[0](hidden[0]), pair[1](hidden[1])


@pytest.mark.parametrize(("student_width", "teacher_width"), [(12, 16), (16, 12), (12, 12)])
@pytest.mark.parametrize("n_tokens", [9, 12, 14])
def test_padded_heads_meet_on_the_tokenizers_ids(student_width: int, teacher_width: int, n_tokens: int) -> None:
    """Restricting both is the same as -inf at every other id: the softmax over the rest is unchanged."""
    pair = heads(student_width, teacher_width)
    width = min(student_width, teacher_width, n_tokens)
    for common, whole in zip(logits_of(common_heads(*pair, n_tokens)), logits_of(pair), strict=True):
        masked = whole.clone()
        masked[:, width:] = -torch.inf
        torch.testing.assert_close(common.softmax(-1), masked.softmax(-1)[:, :width])
        assert common.shape[-1] == width


def test_equal_heads_are_not_copied() -> None:
    pair = heads(12, 12)
    assert [common is head for common, head in zip(common_heads(*pair, 12), pair, strict=True)] == [True, True]


def test_a_trimmed_student_meets_the_same_ids_of_the_teacher() -> None:
    ids = torch.tensor([1, 4, 7, 13, 15])
    student, teacher = heads(5, 14, ids)
    assert known_ids(ids, teacher, 20).tolist() == [1, 4, 7, 13]
    assert known_ids(ids, teacher, 9).tolist() == [1, 4, 7]
    student, teacher = heads(4, 14, ids[:4])
    ours, theirs = common_heads(student, teacher, 20)
    assert ours is student
    torch.testing.assert_close(logits_of((ours, theirs))[1], logits_of((student, teacher))[1][:, ids[:4]])
