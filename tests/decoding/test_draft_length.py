"""The adaptive draft length: what it decides, what it reaches, and that it forgets between requests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from transformers import PreTrainedModel

from specalign.decoding import DraftCosts, ModelDrafter, generate
from specalign.decoding.draft_length import DraftLength

Build = Callable[..., PreTrainedModel]
Confidences = Callable[[random.Random], Iterator[float]]
PROMPT = [5, 9, 31, 7, 7, 12, 9]
COSTS = DraftCosts(0.12, (1.0, 1.05, 1.1, 1.15, 1.2))
MOST = 8


def even(rng: random.Random) -> Iterator[float]:
    """Every token is as likely to be accepted."""
    while True:
        yield 0.6


def mixed(rng: random.Random) -> Iterator[float]:
    """Clear and unclear tokens."""
    while True:
        yield rng.choice((0.95, 0.95, 0.1))


def rate_of(kind: Confidences, gamma: int | None) -> float:
    """Tokens per plain step's cost of 20,000 steps; a token is accepted with the probability of its confidence."""
    rng = random.Random(1)
    policy, accepted, tokens, cost = DraftLength(COSTS), None, 0.0, 0.0
    for _ in range(20_000):
        confidences = kind(rng)
        if gamma is None:
            policy.begin(MOST, accepted)
            while policy.goes_on():
                policy.drafted(next(confidences))
            draft = policy.confidences
        else:
            draft = [next(confidences) for _ in range(gamma)]
        accepted = next((n for n, share in enumerate(draft) if rng.random() >= share), len(draft))
        tokens += accepted + 1
        cost += COSTS.cost(len(draft))
    return tokens / cost


@pytest.mark.parametrize(("kind", "gain"), [(even, 0.96), (mixed, 1.1)])
def test_it_comes_close_to_the_best_fixed_length_and_beats_it_where_tokens_differ(
    kind: Confidences, gain: float
) -> None:
    best = max(rate_of(kind, gamma) for gamma in range(MOST + 1))
    assert rate_of(kind, None) > gain * best


def test_costs_go_on_along_the_last_slope() -> None:
    assert COSTS.cost(0) == 1
    assert COSTS.cost(4) == pytest.approx(4 * 0.12 + 1.2)
    assert COSTS.cost(6) == pytest.approx(6 * 0.12 + 1.3)
    assert DraftCosts(0.5).cost(2) == 2


def test_a_call_that_is_dear_from_the_first_token_is_paid_for_by_those_after_it() -> None:
    """A compiled target has one width for any draft: one token alone never pays, eight do."""
    policy = DraftLength(DraftCosts(0.01, (1.0, *[1.6] * MOST)))
    policy.begin(1, None)
    assert not policy.goes_on()
    policy.begin(MOST, None)
    assert policy.goes_on()


def test_a_drafter_that_costs_more_than_it_can_bring_is_not_asked(build: Build) -> None:
    target = build("llama")
    dear = ModelDrafter(target, adaptive=DraftCosts(1.5))
    steps = generate(target, dear, PROMPT, gamma=4, max_new_tokens=16, eos=()).steps[0]
    assert [step.n_drafted for step in steps] == [0] * 16


def test_an_identical_cheap_drafter_soon_drafts_all_it_may(build: Build) -> None:
    target = build("llama")
    cheap = ModelDrafter(target, adaptive=DraftCosts(0.02))
    steps = generate(target, cheap, PROMPT, gamma=3, max_new_tokens=48, eos=()).steps[0]
    assert [step.n_drafted for step in steps[2:6]] == [3] * 4


def test_a_useless_drafter_is_asked_less_and_less_often_but_again(build: Build) -> None:
    drafter = ModelDrafter(build("llama", 1), adaptive=DraftCosts(0.25))
    result = generate(build("llama"), drafter, PROMPT, gamma=4, max_new_tokens=50, eos=())
    drafted = [step.n_drafted for step in result.steps[0]]
    assert sum(drafted) < 30
    assert any(drafted[20:])


def test_requests_do_not_know_of_each_other(build: Build) -> None:
    target = build("llama")
    drafter = ModelDrafter(build("llama", noise=0.05), adaptive=DraftCosts(0.1))
    counts = [
        [step.n_drafted for step in generate(target, drafter, PROMPT, gamma=4, max_new_tokens=24).steps[0]]
        for _ in range(2)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("costs", [(-0.1, ()), (0.1, (0.0,))])
def test_impossible_costs_are_refused(costs: tuple[float, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="positive ratios"):
        DraftCosts(*costs)
