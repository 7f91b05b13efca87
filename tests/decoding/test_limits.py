"""Limits are per row: a full context ends one row, not its neighbours; positions never leave the trained range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from specalign.decoding import Drafter, ModelDrafter, PromptLookup, generate, stream
from specalign.decoding.divergence import classify_divergence
from specalign.errors import UserError

Build = Callable[..., PreTrainedModel]
Naive = Callable[..., list[int]]
CONTEXT = 32
SETTINGS = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def learned_positions(max_positions: int, seed: int = 0) -> PreTrainedModel:
    """OPT looks its positions up in a table: a position beyond the context is an index error, not a blurred one."""
    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": max_positions,
        "init_std": 0.5,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OPTForCausalLM(OPTConfig(**sizes)).double().eval()


@pytest.fixture(scope="session")
def pairs(build: Build) -> dict[str, tuple[PreTrainedModel, PreTrainedModel]]:
    """Targets with a context of 32, and drafters of 16."""
    return {
        "llama": (build("llama", max_positions=CONTEXT), build("llama", noise=0.05, max_positions=16)),
        "opt": (learned_positions(CONTEXT), learned_positions(16, seed=1)),
    }


@SETTINGS
@given(
    family=st.sampled_from(["llama", "opt"]),
    kind=st.sampled_from(["plain", "short", "same", "lookup"]),
    prompts=st.lists(st.lists(st.integers(3, 39), min_size=1, max_size=CONTEXT - 1), min_size=1, max_size=4),
    gamma=st.integers(1, 6),
    n_new=st.integers(1, 20),
)
def test_a_row_ends_at_its_own_limit(
    pairs: dict[str, tuple[PreTrainedModel, PreTrainedModel]],
    naive_greedy: Naive,
    family: str,
    kind: str,
    prompts: list[list[int]],
    gamma: int,
    n_new: int,
) -> None:
    target, short = pairs[family]
    drafter: dict[str, Drafter | None] = {
        "plain": None,
        "short": ModelDrafter(short),
        "same": ModelDrafter(target),
        "lookup": PromptLookup(),
    }
    found = generate(target, drafter[kind], prompts, gamma=gamma, max_new_tokens=n_new, eos=())
    assert found.token_ids == [
        naive_greedy(target, prompt, min(n_new, CONTEXT - len(prompt)), eos=()) for prompt in prompts
    ]
    assert set(found.finish_reason) == {"length"}


def test_a_drafter_goes_on_with_the_rows_that_fit_its_context(build: Build) -> None:
    target, drafter = build("llama"), build("llama", max_positions=16)
    prompts = [[5, 9, 31], [3 + i % 30 for i in range(20)]]
    steps = generate(target, ModelDrafter(drafter), prompts, gamma=3, max_new_tokens=9, eos=()).steps
    drafted = [sum(step.n_drafted for step in row) for row in steps]
    assert drafted[0] > 0
    assert drafted[1] == 0


PROMPT = [5, 9, 31, 7]


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        (torch.tensor(PROMPT), [PROMPT]),
        (torch.tensor([PROMPT]), [PROMPT]),
        (torch.tensor([PROMPT, PROMPT[::-1]], dtype=torch.int32), [PROMPT, PROMPT[::-1]]),
        (torch.tensor(PROMPT).numpy(), [PROMPT]),
        ([torch.tensor(PROMPT), torch.tensor([8])], [PROMPT, [8]]),
        (list(torch.tensor(PROMPT)), [PROMPT]),
        (tuple(PROMPT), [PROMPT]),
        ([tuple(PROMPT), (8,)], [PROMPT, [8]]),
    ],
)
def test_ids_are_lists_or_tensors_of_one_or_two_dimensions(
    build: Build, given: Any, rows: list[list[int]]
) -> None:
    target = build("llama")
    expected = generate(target, None, rows, max_new_tokens=5).token_ids
    assert generate(target, None, given, max_new_tokens=5).token_ids == expected
    streamed = list(stream(target, None, given, max_new_tokens=5))
    assert [[id_ for step in streamed for id_ in step[row]] for row in range(len(rows))] == expected


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor([[PROMPT]]),
        torch.tensor([0.5, 1.0]),
        [1.0, 2.0],
        [PROMPT, 5],
        [[PROMPT]],
        ["a", "b"],
        "text",
        [True, False],
        torch.tensor(3),
    ],
    ids=str,
)
def test_anything_else_is_named(build: Build, given: Any) -> None:
    with pytest.raises(ValueError, match="input_ids must be one prompt's token ids or a batch of prompts"):
        generate(build("llama"), None, given)


def scaled(kind: str, factors: Sequence[float] = (1.0, 2.0, 4.0, 8.0)) -> PreTrainedModel:
    """Positions scaled by the length: from 16 tokens on (longrope), or from the whole context of 48 (dynamic)."""
    table: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 3.0}
    if kind == "longrope":
        table |= {
            "short_factor": [1.0] * 4,
            "long_factor": list(factors),
            "original_max_position_embeddings": 16,
        }
    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 48,
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=table)).double().eval()


@SETTINGS
@given(
    kind=st.sampled_from(["longrope", "dynamic"]),
    prompts=st.lists(st.lists(st.integers(3, 39), min_size=1, max_size=50), min_size=1, max_size=3),
    n_new=st.integers(1, 12),
    gamma=st.integers(0, 6),
)
def test_positions_scaled_by_length_decode_rightly_or_not_at_all(
    naive_greedy: Naive, kind: str, prompts: list[list[int]], n_new: int, gamma: int
) -> None:
    model, longest = scaled(kind), max(map(len, prompts))

    def decode() -> list[list[int]]:
        drafter = ModelDrafter(model) if gamma else None
        return generate(model, drafter, prompts, gamma=gamma, max_new_tokens=n_new, eos=()).token_ids

    if kind == "longrope" and longest + n_new > 16:
        with pytest.raises(
            UserError, match=rf"\(longrope\) beyond 16 tokens, and {longest + n_new} are asked for"
        ):
            decode()
    elif longest >= 48:
        with pytest.raises(ValueError, match="fills the target's context"):
            decode()
    else:
        limits = [min(n_new, 48 - len(prompt)) for prompt in prompts]
        assert decode() == [
            naive_greedy(model, prompt, n, eos=()) for prompt, n in zip(prompts, limits, strict=True)
        ]


def test_noise_is_measured_without_changing_the_positions() -> None:
    """Padding beyond the original context moved every logit, so that any difference was within the noise."""
    model = scaled("longrope")
    prompt = [3 + i % 30 for i in range(11)]
    (ours,) = generate(model, None, prompt, max_new_tokens=4, eos=()).token_ids
    theirs = [*ours[:3], (ours[3] + 1) % 40]
    assert classify_divergence(model, prompt, ours, theirs) == "unexplained"
