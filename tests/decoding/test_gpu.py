"""The engine on a CUDA device: run with ``python -m pytest -m gpu``."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from specalign.decoding import ModelDrafter, PromptLookup, generate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PROMPTS = [[5, 9, 31, 7, 7, 12, 9], [3, 8, 20], [17]]


def on_gpu(model: PreTrainedModel) -> PreTrainedModel:
    moved = copy.deepcopy(model)
    torch.nn.Module.to(moved, "cuda")
    return moved


def test_greedy_output_is_that_of_the_cpu(build: Callable[..., PreTrainedModel], family: str) -> None:
    """Float64 on both: token for token, plainly and with every kind of drafter."""
    target, near = build(family), build(family, noise=0.05)
    expected = generate(target, None, PROMPTS, max_new_tokens=16).token_ids
    for drafter in (
        None,
        ModelDrafter(on_gpu(near)),
        ModelDrafter(on_gpu(near), torch.arange(0, 40, 3).cuda()),
        PromptLookup(),
    ):
        assert generate(on_gpu(target), drafter, PROMPTS, gamma=3, max_new_tokens=16).token_ids == expected


def test_steps_are_timed_by_events_and_sampling_uses_the_devices_generator(
    build: Callable[..., PreTrainedModel],
) -> None:
    target, drafter = on_gpu(build("llama")), ModelDrafter(on_gpu(build("llama", noise=0.1)))
    generator = torch.Generator("cuda").manual_seed(0)
    result = generate(
        target, drafter, PROMPTS[0], temperature=1.0, max_new_tokens=32, eos=(), generator=generator
    )
    (steps,) = result.steps
    assert all(min(step.draft_s, step.verify_s) >= 0 and step.verify_s > 0 for step in steps)
    assert sum(step.draft_s + step.verify_s + step.rest_s for step in steps) <= 1.05 * result.decode_s
