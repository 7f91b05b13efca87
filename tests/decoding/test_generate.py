"""Greedy speculative decoding is plain greedy decoding, token for token; records add up."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from specalign.decoding import (
    Generation,
    ModelDrafter,
    PromptLookup,
    generate,
)
from specalign.decoding.probe import require_decodable
from specalign.errors import UserError
from specalign.models.tiny import FAMILIES
from tests.decoding.kinds import KINDS, for_family

Build = Callable[..., PreTrainedModel]
Naive = Callable[..., list[int]]
PROMPTS = [[5, 9, 31, 7, 7, 12, 9], [3, 8, 20], [11, 4, 9, 31, 7, 30, 6, 22, 9, 31, 7], [17]]
N_NEW = 16


@pytest.mark.parametrize("gamma", [1, 2, 5, 8])
@pytest.mark.parametrize("kind", ["useless", "identical", *KINDS])
def test_greedy_output_is_that_of_a_loop_without_cache(
    build: Build, naive_greedy: Naive, family: str, kind: str, gamma: int
) -> None:
    if not for_family(kind, family):
        pytest.skip("heads read the states of decoder-only targets")
    target = build(family)
    expected = [naive_greedy(target, prompt, N_NEW) for prompt in PROMPTS]
    models = {"useless": build(family, 1), "identical": target}
    drafter = KINDS.get(kind, ModelDrafter)(models.get(kind) or build(family, noise=0.05))
    alone = [
        generate(target, drafter, prompt, gamma=gamma, max_new_tokens=N_NEW).token_ids[0] for prompt in PROMPTS
    ]
    assert alone == expected
    batch = generate(target, drafter, PROMPTS, gamma=gamma, max_new_tokens=N_NEW)
    assert batch.token_ids == expected
    require_sound(batch)


def require_sound(result: Generation) -> None:
    """Every token is an accepted draft or the target's own, and counts are ordered."""
    for ids, steps in zip(result.token_ids, result.steps, strict=True):
        assert sum(step.n_emitted for step in steps) == len(ids)
        for place, step in enumerate(steps):
            assert 0 <= step.n_accepted <= step.n_examined <= step.n_drafted
            assert len(step.overlap) == step.n_examined
            own = step.n_emitted - step.n_accepted
            assert own == 1 or (own == 0 and place == len(steps) - 1)
            assert min(step.draft_s, step.verify_s, step.rest_s) >= 0


def test_plain_decoding_has_the_same_record(build: Build, naive_greedy: Naive, family: str) -> None:
    target = build(family)
    plain = generate(target, None, PROMPTS, max_new_tokens=N_NEW)
    assert plain.token_ids == [naive_greedy(target, prompt, N_NEW) for prompt in PROMPTS]
    assert all(step.n_drafted == 0 and step.n_emitted == 1 for steps in plain.steps for step in steps)
    require_sound(plain)


def test_an_identical_drafter_is_always_accepted(build: Build, family: str) -> None:
    target = build(family)
    result = generate(target, ModelDrafter(target), PROMPTS[0], gamma=3, max_new_tokens=12, eos=())
    assert [step.n_accepted for step in result.steps[0]] == [3, 3, 3]
    assert all(value == 1 for step in result.steps[0] for value in step.overlap)


@pytest.mark.parametrize("gamma", [1, 3, 6])
@pytest.mark.parametrize("place", range(8))
def test_eos_ends_the_sequence_wherever_it_falls_in_a_block(
    build: Build, naive_greedy: Naive, gamma: int, place: int
) -> None:
    target = build("llama")
    free = naive_greedy(target, PROMPTS[0], N_NEW, eos=())
    eos = (free[place],)
    expected = free[: free.index(eos[0]) + 1]
    for drafter in (ModelDrafter(target), ModelDrafter(build("llama", noise=0.05)), PromptLookup()):
        result = generate(target, drafter, PROMPTS[0], gamma=gamma, max_new_tokens=N_NEW, eos=eos)
        assert result.token_ids == [expected]
        assert result.finish_reason == ["eos"]
        require_sound(result)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_last_block_never_overshoots(build: Build, naive_greedy: Naive, n: int) -> None:
    target = build("llama")
    result = generate(target, ModelDrafter(target), PROMPTS[0], gamma=4, max_new_tokens=n, eos=())
    assert result.token_ids == [naive_greedy(target, PROMPTS[0], n, eos=())]
    assert result.finish_reason == ["length"]
    assert sum(step.n_drafted for step in result.steps[0]) <= n - 1


def test_decoding_ends_where_the_context_is_full(build: Build, naive_greedy: Naive) -> None:
    target = build("llama")
    prompt = [3 + i % 30 for i in range(60)]
    result = generate(target, ModelDrafter(target), prompt, gamma=4, max_new_tokens=50, eos=())
    assert result.token_ids == [naive_greedy(target, prompt, 4, eos=())]
    with pytest.raises(ValueError, match="64 tokens fills the target's context"):
        generate(target, None, [3] * 64)


def test_a_drafter_of_shorter_context_stops_drafting(build: Build, naive_greedy: Naive) -> None:
    target, drafter = build("llama"), build("llama", noise=0.05, max_positions=16)
    for prompt in (PROMPTS[0], [3 + i % 30 for i in range(20)]):
        result = generate(target, ModelDrafter(drafter), prompt, gamma=3, max_new_tokens=20, eos=())
        assert result.token_ids == [naive_greedy(target, prompt, 20, eos=())]
        assert result.steps[0][-1].n_drafted == 0


@pytest.mark.parametrize("prompts", [[], [[]], [[3], []]])
def test_an_empty_prompt_is_refused(build: Build, prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        generate(build("llama"), None, prompts)


def test_bad_numbers_and_names_are_refused(build: Build) -> None:
    target = build("llama")
    with pytest.raises(UserError, match="unknown verification rule 'tokens'; did you mean 'token'"):
        generate(target, None, [3], rule="tokens")
    with pytest.raises(ValueError, match="max_new_tokens >= 1"):
        generate(target, None, [3], max_new_tokens=0)
    with pytest.raises(ValueError, match="top_p"):
        generate(target, None, [3], temperature=1.0, top_p=0.0)


ANY_BATCH = given(
    family=st.sampled_from(FAMILIES),
    kind=st.sampled_from(["plain", *KINDS]),
    prompts=st.lists(st.lists(st.integers(3, 39), min_size=1, max_size=12), min_size=1, max_size=4),
    gamma=st.integers(1, 8),
    n_new=st.integers(1, 20),
    eos=st.sets(st.integers(0, 39), max_size=6),
    noise=st.sampled_from([0.0, 0.02, 0.1, 0.3]),
)
"""Lengths, end-of-sequence ids, prompts, drafters from useless to identical, of every family."""
SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def require_rows_of(
    build: Build,
    naive_greedy: Naive,
    *,
    family: str,
    kind: str,
    prompts: list[list[int]],
    gamma: int,
    n_new: int,
    eos: set[int],
    noise: float,
) -> None:
    """Each row of the batch is what a loop without a cache gives for its prompt alone."""
    assume(for_family(kind, family))
    drafter = None if kind == "plain" else KINDS[kind](build(family, noise=noise))
    target = build(family)
    result = generate(target, drafter, prompts, gamma=gamma, max_new_tokens=n_new, eos=tuple(eos))
    assert result.token_ids == [naive_greedy(target, prompt, n_new, tuple(eos)) for prompt in prompts]
    require_sound(result)


@settings(SETTINGS, max_examples=60)
@ANY_BATCH
def test_any_batch_decodes_as_its_rows_do(build: Build, naive_greedy: Naive, **drawn: Any) -> None:
    require_rows_of(build, naive_greedy, **drawn)


@pytest.mark.slow
@settings(SETTINGS, max_examples=600)
@ANY_BATCH
def test_many_batches_decode_as_their_rows_do(build: Build, naive_greedy: Naive, **drawn: Any) -> None:
    require_rows_of(build, naive_greedy, **drawn)


def test_sampling_depends_on_the_generator_alone(build: Build) -> None:
    target, drafter = build("llama"), ModelDrafter(build("llama", noise=0.1))

    def drawn(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return generate(
            target, drafter, PROMPTS, temperature=1.0, max_new_tokens=8, generator=generator
        ).token_ids

    assert drawn(1) == drawn(1) != drawn(2)


def test_prompts_that_begin_each_other_share_one_prefill(build: Build) -> None:
    target = build("llama")
    require_decodable(target)
    forks = [PROMPTS[0][:n] for n in (7, 3, 5)] + [PROMPTS[1]]
    seen: list[tuple[int, ...]] = []
    hook = target.model.embed_tokens.register_forward_hook(
        lambda _m, args, _out: seen.append(tuple(args[0].shape))
    )
    try:
        together = generate(target, None, forks, max_new_tokens=5).token_ids
    finally:
        hook.remove()
    assert seen[0] == (2, 6)
    assert together == [generate(target, None, prompt, max_new_tokens=5).token_ids[0] for prompt in forks]


def test_a_trimmed_head_decodes_within_its_vocabulary(build: Build) -> None:
    ids = torch.tensor([2, 5, 9, 30])
    generator = torch.Generator().manual_seed(0)
    result = generate(
        build("llama"), None, PROMPTS, temperature=1.0, max_new_tokens=9, head_ids=ids, generator=generator
    )
    assert {token for row in result.token_ids for token in row} <= set(ids.tolist())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_encoder_decoder_model_goes_on_from_what_is_written(
    build: Build, next_logits: Callable[..., torch.Tensor], attention: str
) -> None:
    """Of each row another length, also nothing; equal prompts share one encoder pass."""
    target = copy.deepcopy(build("t5"))
    target.set_attn_implementation(attention)
    require_decodable(target)
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[3]]
    written = [[7, 30, 8], [], [12], [5, 9, 31, 7, 3]]
    seen: list[int] = []
    hook = target.get_encoder().register_forward_hook(
        lambda _m, _args, kwargs, _out: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        found = generate(target, None, prompts, written=written, max_new_tokens=9).token_ids
    finally:
        hook.remove()
    assert seen == [3]
    for prompt, before, after in zip(prompts, written, found, strict=True):
        expected = list(before)
        while len(expected) - len(before) < 9 and not (len(expected) > len(before) and expected[-1] == 2):
            expected.append(int(next_logits(target, prompt, expected).argmax()))
        assert after == expected[len(before) :]


def test_only_a_plain_encoder_decoder_model_goes_on(build: Build) -> None:
    for family, drafter in (("llama", None), ("t5", PromptLookup())):
        with pytest.raises(ValueError, match="an encoder-decoder model that decodes plainly"):
            generate(build(family), drafter, [[5]], written=[[7]])


def test_an_encoder_decoder_model_decodes_a_plain_batch_together(build: Build) -> None:
    """One encoder call and one decoder call a token; rows that end early leave the batch."""
    target = build("t5")
    alone = [generate(target, None, prompt, max_new_tokens=N_NEW).token_ids[0] for prompt in PROMPTS]
    rows: dict[str, list[int]] = {"encoder": [], "decoder": []}
    hooks = [
        stack.register_forward_hook(
            lambda _m, _args, kwargs, _out, name=name: rows[name].append(len(kwargs["input_ids"])),
            with_kwargs=True,
        )
        for name, stack in (("encoder", target.get_encoder()), ("decoder", target.get_decoder()))
    ]
    try:
        together = generate(target, None, PROMPTS, max_new_tokens=N_NEW).token_ids
    finally:
        for hook in hooks:
            hook.remove()
    assert together == alone
    assert rows["encoder"] == [len(PROMPTS)]
    assert len(rows["decoder"]) == max(map(len, alone))
    assert rows["decoder"] == sorted(rows["decoder"], reverse=True)
