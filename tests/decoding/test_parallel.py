"""A parallel draft: one call over the text's new tokens and masks, which nothing sees afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from specalign.decoding import (
    DraftCosts,
    Hybrid,
    Masks,
    ModelDrafter,
    ParallelDrafter,
    Shapes,
    SuffixLookup,
    drafter_of,
    generate,
    make_stepper,
)
from specalign.decoding.draft_length import DraftLengths
from specalign.decoding.drafters import Draft
from specalign.decoding.hybrid import drafting_models
from specalign.decoding.sampling import Sampling, probabilities
from specalign.decoding.session import Session
from specalign.errors import UserError
from specalign.models.mask_token import masks_of

Build = Callable[..., PreTrainedModel]
Naive = Callable[..., list[int]]
MASK = 4
MASKS = Masks(MASK, 4)
PLAIN = Sampling(1.0)
TEXTS = [[5, 9, 31, 7, 7, 12, 9], [3, 8, 20], [17]]
GROWN = [[1, 2, 3], [6], [11, 13]]
"""What is emitted after each text: drafts accepted whole, in part, and not at all."""


def started(model: PreTrainedModel, texts: Sequence[Sequence[int]], **options: Any) -> Any:
    """The drafter's side of a request of these texts."""
    drafter = ParallelDrafter(model, MASKS, **options)
    target = Session.start(make_stepper(model), texts, 30)
    with torch.inference_mode():
        return drafter.start(texts, 30, PLAIN, target)


def by_hand(model: PreTrainedModel, text: Sequence[int], n: int) -> Tensor:
    """q [n, V] of a forward pass without any cache over the text and n - 1 masks."""
    with torch.no_grad():
        ids = torch.tensor([[*text, *[MASK] * (n - 1)]])
        return probabilities(model(input_ids=ids, use_cache=False).logits[0, -n:], PLAIN)


def drafts(drafting: Any, n: int = 3) -> list[tuple[list[list[int]], Draft]]:
    """Two drafts, the second after the rows have grown unevenly."""
    texts = [list(text) for text in TEXTS]
    found = []
    for grown in (GROWN, [[21], [22], [23]]):
        with torch.inference_mode():
            found.append(([list(text) for text in texts], drafting.draft(texts, [n] * 3, torch.Generator())))
        texts = [[*text, *more] for text, more in zip(texts, grown, strict=True)]
    return found


def agrees(model: PreTrainedModel, drafting: Any) -> bool:
    """Whether every q is that of a pass without a cache."""
    return all(
        torch.allclose(q, by_hand(model, text, 3), rtol=0, atol=1e-5)
        for texts, draft in drafts(drafting)
        for text, q in zip(texts, draft.q, strict=True)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2", "gemma3"])
def test_each_token_comes_from_what_a_pass_without_a_cache_gives_at_its_mask(build: Build, family: str) -> None:
    model = build(family)
    assert agrees(model, started(model, TEXTS))


def test_masks_that_stay_in_the_cache_are_caught(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong: the masks are taken for tokens that were read, and what follows is written behind them."""
    model, rollback = build("llama"), Session.rollback

    def nothing_forgotten(session: Session, lengths: Sequence[int]) -> None:
        if list(lengths) == [len(text) for text in TEXTS]:
            return
        rollback(session, [max(pair) for pair in zip(lengths, session.lengths, strict=True)])

    drafting = started(model, TEXTS)
    monkeypatch.setattr(Session, "rollback", nothing_forgotten)
    assert not agrees(model, drafting)


def test_a_draft_is_one_call_whatever_its_length(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model, extend = build("llama"), Session.extend
    drafting = started(model, TEXTS)
    calls: list[int] = []

    def counting(session: Session, ids: Tensor) -> Tensor:
        calls.append(ids.shape[1])
        return extend(session, ids)

    monkeypatch.setattr(Session, "extend", counting)
    drafts(drafting, 4)
    assert calls == [1 + 3, 3 + 3]


def test_limits_are_per_row_and_at_most_k(build: Build) -> None:
    drafting = started(build("llama"), TEXTS)
    with torch.inference_mode():
        found = drafting.draft(TEXTS, [9, 0, 2], torch.Generator())
        assert found.counts == [4, 0, 2]
        assert found.ids.shape == (3, 4)
        assert drafting.draft(TEXTS, [0, 0, 0], torch.Generator()).counts == [0, 0, 0]


def test_nothing_is_drafted_beyond_the_drafters_context(build: Build, naive_greedy: Naive) -> None:
    short = build("llama", noise=0.05, max_positions=12)
    with torch.inference_mode():
        drafting = started(short, [[5] * 10, [6] * 3])
        assert drafting.draft([[5] * 10, [6] * 3], [4, 4], None).counts == [2, 4]
    target = build("llama")
    found = generate(target, ParallelDrafter(short, MASKS), TEXTS, gamma=4, max_new_tokens=14, eos=())
    assert found.token_ids == [naive_greedy(target, text, 14, eos=()) for text in TEXTS]
    assert max(step.n_drafted for step in found.steps[0]) > 0


def test_a_compiled_drafter_drafts_what_an_eager_one_does(build: Build, naive_greedy: Naive) -> None:
    """Fewer graphs than numbers of tokens: what is missing is padded, and what is more is read in pieces."""
    near, target = build("llama", noise=0.05), build("llama")
    kept = torch.arange(0, 40, 3)
    eager = ParallelDrafter(near, MASKS, kept)
    shapes = Shapes(sizes=(1, 4, 6), capacity=64, n_rows=3)
    compiled = replace(eager, stepper=make_stepper(near, "compiled", ids=kept, shapes=shapes))
    for temperature in (0.0, 1.0):
        outputs = [
            generate(
                target,
                drafter,
                TEXTS,
                gamma=4,
                temperature=temperature,
                max_new_tokens=20,
                eos=(),
                generator=torch.Generator().manual_seed(2),
            )
            for drafter in (eager, compiled)
        ]
        assert outputs[0].token_ids == outputs[1].token_ids
        assert [[step.n_drafted for step in row] for row in outputs[0].steps] == [
            [step.n_drafted for step in row] for row in outputs[1].steps
        ]
    assert outputs[0].token_ids != [naive_greedy(target, text, 20, eos=()) for text in TEXTS]


def test_adaptive_drafts_are_longer_where_a_call_costs_the_same(build: Build) -> None:
    """C_n by the measured times of the calls, not n times that of one."""
    flat, steep = DraftCosts(0.3, (1.0, 1.02), (0.0, 0.3, 0.31)), DraftCosts(0.3, (1.0, 1.02))
    model = build("llama")
    lengths = []
    for costs in (flat, steep):
        done = generate(
            model,
            ParallelDrafter(build("llama", noise=0.02), Masks(MASK, 4), adaptive=costs),
            TEXTS,
            gamma=4,
            max_new_tokens=30,
            eos=(),
        )
        lengths.append(sum(step.n_drafted for row in done.steps for step in row))
    assert lengths[0] > lengths[1]


def test_the_cost_of_a_draft_is_that_of_its_call() -> None:
    costs = DraftCosts.measured([0.2, 0.25, 0.3], [1.0, 1.5, 1.75])
    assert [costs.cost(n) for n in range(5)] == pytest.approx([1.0, 1.7, 2.0, 2.3, 2.6])
    assert costs.c == 0.2
    with pytest.raises(ValueError, match="positive ratios"):
        DraftCosts(0.1, (), (0.0, -1.0))


def test_a_draft_is_cut_by_the_tokens_before_each_alone(build: Build) -> None:
    """The token after which a row stops does not depend on what is drafted behind it."""
    drafting = started(build("llama"), TEXTS, adaptive=DraftCosts(0.0, (1.0, 1.3)))
    first = torch.tensor([[0.9, 0.1, 0.9], [0.1, 0.9, 0.9], [0.9, 0.9, 0.9]])
    counts = []
    for last in (0.0, 1.0):
        drafting.lengths = DraftLengths(DraftCosts(0.0, (1.0, 1.3)), 3)
        drafting.lengths.begin([3, 3, 3])
        assert drafting.lengths.go_on()
        changed = first.clone()
        changed[:, -1] = last
        counts.append(drafting._counts(changed))
    assert counts[0] == counts[1]
    assert min(counts[0]) < max(counts[0])


def test_a_hybrid_takes_it_as_a_part(build: Build, naive_greedy: Naive) -> None:
    model = build("llama")
    drafter = ParallelDrafter(
        build("llama", noise=0.05), MASKS, adaptive=DraftCosts(0.1, (1.0, 1.05), (0.0, 0.1))
    )
    hybrid = Hybrid((SuffixLookup(DraftCosts(0.0, (1.0, 1.05))), drafter))
    found = generate(model, hybrid, TEXTS, gamma=3, max_new_tokens=20, eos=())
    assert found.token_ids == [naive_greedy(model, text, 20, eos=()) for text in TEXTS]
    assert drafting_models(hybrid) == [drafter.model]


def test_a_model_is_the_drafter_that_its_config_says(build: Build) -> None:
    model = build("llama", 7)
    assert isinstance(drafter_of(model), ModelDrafter)
    model.config.pard_token, model.config.pard_k = 39, 5
    try:
        kept = torch.arange(10)
        assert drafter_of(model, kept) == ParallelDrafter(model, Masks(39, 5), kept)
    finally:
        del model.config.pard_token, model.config.pard_k


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pard_token": 40}, "pard_token = 40 is no id of the model, which has 40"),
        ({"pard_token": "x"}, "pard_token = 'x' is no id of the model"),
        ({"pard_token": 3, "pard_k": 0}, "pard_k of the model must be a whole number of at least 1, not 0"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        masks_of(LlamaConfig.from_dict({"vocab_size": 40, **fields}))


def test_a_config_without_k_has_the_published_one() -> None:
    assert masks_of(LlamaConfig.from_dict({"vocab_size": 40, "pard_token": 3})) == Masks(3, 8)
    assert masks_of(LlamaConfig(vocab_size=40)) is None


def test_costs_and_readiness_leave_the_rest(build: Build) -> None:
    drafter = ParallelDrafter(build("llama"), MASKS)
    assert drafter.with_costs(DraftCosts(0.5)) == replace(drafter, adaptive=DraftCosts(0.5))
    assert drafter.alone.model is drafter.model
