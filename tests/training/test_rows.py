"""A packed row gives each branch exactly what a row of its own would give it."""

import itertools
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

from specalign.losses import objective
from specalign.training.rows import Branch, Row, lay_out
from specalign.training.scoring import Pair, can_pack, per_token_loss, states

SIZE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}
GEMMA = {**SIZE, "head_dim": 8, "sliding_window": 5}
MODELS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZE)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZE)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZE, sliding_window=5)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**GEMMA)),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA)),
}
PROMPT = (3, 4, 5, 6, 7, 8, 9)
ROWS = [
    Row(
        (*PROMPT, 10, 11, 12, 2), 7, (Branch(7, (13, 14, 15)), Branch(9, (16,)), Branch(10, (17, 18))), (), True
    ),
    Row((5, 6, 7, 20, 21), 3),
    Row((8, 9), 2, (Branch(2, (22, 23, 24, 25)),), (), True),
]


def build(name: str, attn: str, seed: int) -> PreTrainedModel:
    kind, config = MODELS[name]
    torch.manual_seed(seed)
    model = kind._from_config(config, attn_implementation=attn).double().eval()
    assert model.config._attn_implementation == attn
    return model


def loss_and_gradients(pair: Pair, packed: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    layout = lay_out(ROWS, packed=packed)
    with torch.no_grad():
        known = states(pair.teacher, layout)
    losses = per_token_loss(pair, layout, objective({"forward_kl": 1.0}), known)
    gradients = torch.autograd.grad(losses.sum(), list(pair.student.parameters()))
    return losses.detach(), list(gradients)


@pytest.mark.parametrize(
    ("name", "attn"),
    [(name, attn) for name in MODELS for attn in ("sdpa", "eager") if (name, attn) != ("gemma2", "sdpa")],
)
def test_packed_rows_score_like_separate_rows(name: str, attn: str) -> None:
    pair = Pair(build(name, attn, 0), build(name, attn, 1), n_tokens=38)
    assert can_pack(pair.student)
    packed, packed_gradients = loss_and_gradients(pair, packed=True)
    separate, separate_gradients = loss_and_gradients(pair, packed=False)
    # Norms and rotary angles are float32 inside these float64 models, hence not 1e-12.
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(packed_gradients, separate_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)


def test_packing_reads_each_trunk_once() -> None:
    packed, separate = lay_out(ROWS, packed=True), lay_out(ROWS, packed=False)
    assert packed.n_tokens == separate.n_tokens == sum(row.n_tokens for row in ROWS) == 12
    assert torch.equal(packed.labels, separate.labels)
    assert len(packed.input_ids) == 3
    assert len(separate.input_ids) == 5


def test_a_branch_off_the_end_of_its_trunk_needs_no_mask() -> None:
    assert lay_out(ROWS[1:], packed=True).visible is None
    assert lay_out(ROWS, packed=False).visible is None


def test_packing_is_refused_where_it_would_be_wrong() -> None:
    model = build("llama", "sdpa", 0)
    model.config._attn_implementation = "flash_attention_2"
    assert not can_pack(model)


def test_sequences_are_told_apart() -> None:
    ids = lay_out(ROWS, packed=True).sequence_ids.tolist()
    runs = [ids[0]] + [b for a, b in itertools.pairwise(ids) if a != b]
    assert len(runs) == len(set(runs)) == 5


@pytest.mark.parametrize("packed", [True, False])
def test_earlier_answers_of_a_row_are_scored_as_in_rows_of_their_own(packed: bool) -> None:
    model = build("llama", "sdpa", 0)
    trunk = (*PROMPT, 10, 11, 12, 2, 20, 21)
    spans, rows = ((2, 4), (7, 10), (11, 13)), [Row(trunk, 11, spans=((2, 4), (7, 10)))]
    layout = lay_out([*ROWS, *rows], packed=packed)
    n = rows[0].n_tokens
    assert (n, layout.labels[-n:].tolist()) == (7, [5, 6, 10, 11, 12, 20, 21])
    assert layout.sequence_ids[-n:].unique().numel() == 3
    alone = lay_out([Row(trunk[:end], begin) for begin, end in spans], packed=packed)
    torch.testing.assert_close(states(model, layout)[-n:], states(model, alone), rtol=1e-5, atol=1e-6)


def test_branches_of_a_conversation_leave_its_earlier_answers_alone() -> None:
    row = Row((*PROMPT, 10, 11), 7, (Branch(8, (13, 14)),), (), True, spans=((2, 4),))
    for packed in (True, False):
        assert lay_out([row], packed=packed).labels.tolist() == [13, 14]


def test_branches_of_an_encoder_decoder_model_are_scored_as_alone() -> None:
    """Each in a decoder row of its own, after one encoder pass a prompt."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
    }
    model = T5ForConditionalGeneration(T5Config(**sizes | {"decoder_start_token_id": 0})).double().eval()
    branches = (Branch(1, (13, 14, 15)), Branch(3, (16,)), Branch(2, (17, 18)))
    rows = [
        Row((0, 10, 11, 12), 1, branches, PROMPT, True),
        Row((0, 20, 21), 1, (), (8, 9)),
        Row((0, 22), 1, (Branch(1, (23, 24)),), (5, 6, 7), True),
    ]
    layout = lay_out(rows, packed=False)
    assert layout.encoder
    assert [len(tensor) for tensor in layout.encoder] == [3, 3, 5]
    found = states(model, layout).split([len(branch.tokens) for row in rows for branch in row.scored])
    each = [(row, branch) for row in rows for branch in row.scored]
    for (row, branch), ours in zip(each, found, strict=True):
        read = torch.tensor([[*row.trunk[: branch.start], *branch.tokens[:-1]]])
        inputs = {"input_ids": torch.tensor([row.encoder]), "decoder_input_ids": read}
        whole = model(**inputs, output_hidden_states=True).decoder_hidden_states[-1][0]
        torch.testing.assert_close(ours, whole[branch.start - 1 :], rtol=0, atol=1e-12)
