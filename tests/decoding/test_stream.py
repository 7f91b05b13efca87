"""Streaming is generating, seen step by step; margins say how clear each choice was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from specalign.decoding import ModelDrafter, generate, stream

Build = Callable[..., PreTrainedModel]
PROMPTS = [[5, 9, 31, 7, 7, 12, 9], [3, 8, 20], [17]]


def added_up(parts: list[list[list[int]]]) -> list[list[int]]:
    return [[token for part in parts for token in part[row]] for row in range(len(parts[0]))]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_stream_adds_up_to_the_generation(build: Build, family: str, temperature: float) -> None:
    target, drafter = build(family), ModelDrafter(build(family, noise=0.05))

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(4)

    parts = list(
        stream(
            target, drafter, PROMPTS, gamma=3, temperature=temperature, max_new_tokens=12, generator=generator()
        )
    )
    whole = generate(
        target, drafter, PROMPTS, gamma=3, temperature=temperature, max_new_tokens=12, generator=generator()
    )
    assert added_up(parts) == whole.token_ids
    sizes = [[len(part[row]) for part in parts if part[row]] for row in range(3)]
    assert sizes == [[step.n_emitted for step in steps] for steps in whole.steps]


def test_a_stream_can_be_left_and_costs_no_more_steps_than_were_taken(build: Build) -> None:
    target, calls = build("llama"), []
    hook = target.model.register_forward_hook(lambda *_: calls.append(torch.is_inference_mode_enabled()))
    try:
        for place, _ in enumerate(stream(target, None, PROMPTS[0], max_new_tokens=30, eos=())):
            assert not torch.is_inference_mode_enabled()
            if place == 2:
                break
    finally:
        hook.remove()
    assert calls == [True] * 4  # the prefill and three steps


def test_bad_options_are_refused_as_by_generate(build: Build) -> None:
    with pytest.raises(ValueError, match="max_new_tokens >= 1"):
        next(stream(build("llama"), None, [3], max_new_tokens=0))


def test_margins_are_those_of_a_loop_without_cache(
    build: Build, family: str, next_logits: Callable[..., torch.Tensor]
) -> None:
    target, drafter = build(family), ModelDrafter(build(family, noise=0.05))
    result = generate(target, drafter, PROMPTS[0], gamma=3, max_new_tokens=9, margins=True)
    (ids,), (steps,) = result.token_ids, result.steps
    margins = [margin for step in steps for margin in step.margins]
    expected = []
    for place in range(len(ids)):
        best = next_logits(target, PROMPTS[0], ids[:place]).topk(2).values
        expected.append(float(best[0] - best[1]))
    assert margins == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert not generate(target, drafter, PROMPTS[0], max_new_tokens=3).steps[0][0].margins


def test_a_restricted_target_takes_no_drafter(build: Build) -> None:
    target = build("llama")
    with pytest.raises(ValueError, match="without a drafter"):
        generate(target, ModelDrafter(target), [3], head_ids=torch.tensor([2, 5]))
