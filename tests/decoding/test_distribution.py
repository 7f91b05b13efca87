"""Sampled speculative output follows the target's distribution; wrong rules are caught by the same test.

The joint distribution of the first three tokens over a vocabulary of five is computed exactly, without a cache,
and compared with thousands of generations by a chi-square test. Seeds are fixed, so the outcome is too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import PreTrainedModel

from specalign.benchmarks import selftest
from specalign.decoding import (
    RULES,
    DraftCosts,
    Drafter,
    ModelDrafter,
    generate,
)
from specalign.decoding.sampling import Sampling, probabilities, sample
from specalign.decoding.session import Session
from specalign.decoding.verification import Verdict, block, lenience, pick, token
from tests.decoding.kinds import KINDS

Build = Callable[..., PreTrainedModel]
Logits = Callable[..., Tensor]
VOCAB, N_TOKENS, N_SAMPLES = 5, 3, 4000
PROMPT = [3, 1, 4, 1]
PLAIN = Sampling(temperature=1.0)
FILTERED = Sampling(temperature=1.5, top_k=4, top_p=0.95)


SCALE = 14.0
"""Weights large enough for attention to matter: at 6 one more token in the context moves p by only 0.02, and a cache
that keeps a rejected token goes unseen."""


@pytest.fixture(scope="module")
def target(build: Build) -> PreTrainedModel:
    return build("llama", vocab=VOCAB, scale=SCALE)


@pytest.fixture(scope="module")
def drafter(build: Build) -> PreTrainedModel:
    return build("llama", 3, vocab=VOCAB, scale=SCALE)


def exact_joint(
    target: PreTrainedModel, next_logits: Logits, sampling: Sampling
) -> dict[tuple[int, ...], float]:
    """Probability of every sequence of N_TOKENS tokens."""
    joint: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(N_TOKENS):
        longer: dict[tuple[int, ...], float] = {}
        for sequence, mass in joint.items():
            p = probabilities(next_logits(target, PROMPT, list(sequence)), sampling).tolist()
            longer |= {(*sequence, token_id): mass * p[token_id] for token_id in range(VOCAB)}
        joint = longer
    return joint


def drawn(
    target: PreTrainedModel, drafter: Drafter, sampling: Sampling, gamma: int
) -> Counter[tuple[int, ...]]:
    """Counts of N_SAMPLES speculative generations."""
    result = generate(
        target,
        drafter,
        [PROMPT] * N_SAMPLES,
        gamma=gamma,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        max_new_tokens=N_TOKENS,
        eos=(),
        generator=torch.Generator().manual_seed(11),
    )
    return Counter(map(tuple, result.token_ids))


def chi_square(counts: Counter[tuple[int, ...]], joint: dict[tuple[int, ...], float]) -> float:
    """p-value of the counts under ``joint``; cells expected less than five times are one cell."""
    assert not [sequence for sequence in counts if joint[sequence] == 0], "an impossible sequence was drawn"
    return selftest.chi_square(counts, joint)


@pytest.mark.parametrize("sampling", [PLAIN, FILTERED], ids=["plain", "filtered"])
@pytest.mark.parametrize("gamma", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_output_follows_the_target(
    target: PreTrainedModel,
    drafter: PreTrainedModel,
    next_logits: Logits,
    kind: str,
    gamma: int,
    sampling: Sampling,
) -> None:
    joint = exact_joint(target, next_logits, sampling)
    assert chi_square(drawn(target, KINDS[kind](drafter), sampling, gamma), joint) > 1e-3


@pytest.mark.parametrize("rule", ["token", "block"])
def test_adaptive_draft_lengths_leave_the_distribution_alone(
    target: PreTrainedModel,
    drafter: PreTrainedModel,
    next_logits: Logits,
    rule: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RULES, "token", RULES[rule])
    adaptive = ModelDrafter(drafter, adaptive=DraftCosts(0.3))
    counts = drawn(target, adaptive, PLAIN, 3)
    assert chi_square(counts, exact_joint(target, next_logits, PLAIN)) > 1e-3


@pytest.mark.parametrize("sampling", [PLAIN, FILTERED], ids=["plain", "filtered"])
def test_these_tests_have_the_power_to_see_a_tenth_of_the_mass_moved(
    target: PreTrainedModel, next_logits: Logits, sampling: Sampling
) -> None:
    """Whatever way a rule is wrong, if it moves a tenth of the joint mass these samples show it in 99 of 100 seeds.

    Of all distributions at total variation e from the true one, the chi-square statistic's noncentrality is least,
    4 N e^2, for one that takes e evenly from half the mass and gives it evenly to the other half.
    """
    expected = N_SAMPLES * np.array(list(exact_joint(target, next_logits, sampling).values()))
    n_cells = int((expected >= 5).sum()) + 1
    rejected_above = stats.chi2.ppf(1 - 1e-3, n_cells - 1)
    assert stats.ncx2.sf(rejected_above, n_cells - 1, 4 * N_SAMPLES * 0.1**2) > 0.99


def test_a_cache_that_keeps_a_rejected_token_is_caught(
    target: PreTrainedModel, drafter: PreTrainedModel, next_logits: Logits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong: after a rollback one rejected position stays in the cache, and all that follows is shifted by it."""
    rollback = Session.rollback

    def off_by_one(session: Session, lengths: Sequence[int]) -> None:
        kept = [min(length + 1, now) for length, now in zip(lengths, session.lengths, strict=True)]
        rollback(session, kept)

    monkeypatch.setattr(Session, "rollback", off_by_one)
    counts = drawn(target, ModelDrafter(drafter), PLAIN, 2)
    assert chi_square(counts, exact_joint(target, next_logits, PLAIN)) < 1e-9


def no_residual(
    p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator | None = None, *, counts: Tensor
) -> Verdict:
    """Wrong: the token after a rejection comes from p, not from the residual."""
    accepted, _ = token(p, q, drafted, generator, counts=counts)
    return accepted, sample(pick(p, accepted), generator)


def always_accept(
    p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator | None = None, *, counts: Tensor
) -> Verdict:
    """Wrong: every draft stays."""
    return counts, sample(pick(p, counts), generator)


def shifted(
    p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator | None = None, *, counts: Tensor
) -> Verdict:
    """Wrong: each draft is judged by the target's distribution one position later."""
    accepted, _ = token(torch.cat([p[:, 1:], p[:, -1:]], 1), q, drafted, generator, counts=counts)
    return accepted, sample(pick(p, accepted), generator)


def filtered_residual(
    p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator | None = None, *, counts: Tensor
) -> Verdict:
    """Wrong: the residual loses its tail once more."""
    accepted, own = token(p, q, drafted, generator, counts=counts)
    residual = (pick(p, accepted) - pick(torch.cat([q, q[:, :1]], 1), accepted)).clamp(min=0)
    return accepted, torch.where(accepted < counts, residual.argmax(-1), own)


@pytest.mark.parametrize("wrong", [no_residual, always_accept, shifted, filtered_residual])
def test_a_wrong_rule_is_caught(
    target: PreTrainedModel,
    drafter: PreTrainedModel,
    next_logits: Logits,
    wrong: Callable[..., Verdict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RULES, "token", wrong)
    counts = drawn(target, ModelDrafter(drafter), PLAIN, 2)
    assert chi_square(counts, exact_joint(target, next_logits, PLAIN)) < 1e-9


def test_a_drafter_that_filters_less_than_the_target_is_caught(
    target: PreTrainedModel, drafter: PreTrainedModel, next_logits: Logits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong: drafts come from the filtered q, but are judged by the unfiltered one."""

    def unfiltered(
        p: Tensor,
        q: Tensor,
        drafted: Tensor,
        generator: torch.Generator | None = None,
        *,
        counts: Tensor | None = None,
    ) -> Verdict:
        return token(p, q.sqrt() / q.sqrt().sum(-1, keepdim=True), drafted, generator, counts=counts)

    monkeypatch.setitem(RULES, "token", unfiltered)
    counts = drawn(target, ModelDrafter(drafter), FILTERED, 2)
    assert chi_square(counts, exact_joint(target, next_logits, FILTERED)) < 1e-9


def test_expected_and_counted_acceptance_agree(target: PreTrainedModel, drafter: PreTrainedModel) -> None:
    """The mean of sum min(p, q) over examined positions is the acceptance rate, within sampling noise."""
    result = generate(
        target,
        ModelDrafter(drafter),
        [PROMPT] * N_SAMPLES,
        gamma=3,
        temperature=1.0,
        max_new_tokens=8,
        eos=(),
        generator=torch.Generator().manual_seed(5),
    )
    steps = [step for row in result.steps for step in row]
    n = sum(step.n_examined for step in steps)
    counted = sum(step.n_accepted for step in steps) / n
    expected = sum(sum(step.overlap) for step in steps) / n
    assert abs(counted - expected) < 4 * (0.25 / n) ** 0.5


def test_equal_distributions_leave_nothing_to_reject() -> None:
    p = torch.softmax(torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0)), -1)
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        accepted, own = token(p, p[:3], sample(p[:3], generator), generator)
        assert accepted == 3
        assert 0 <= own < VOCAB


def test_no_residual_mass_falls_back_to_p() -> None:
    """p = q but for rounding: a rejection that rounding caused must still yield a token of p."""
    p = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    q = torch.tensor([[1e-9, 1.0]])
    accepted, own = token(p, q, torch.tensor([0]), torch.Generator().manual_seed(0))
    assert accepted == 0
    assert own == 1


def test_sampling_never_draws_what_has_no_probability() -> None:
    p = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0]).expand(20000, -1)
    ids = sample(p, torch.Generator().manual_seed(0))
    assert set(ids.tolist()) == {1, 3}
    assert abs((ids == 3).double().mean() - 0.7) < 4 * (0.21 / 20000) ** 0.5


def test_probabilities_filter_in_the_stated_order() -> None:
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    assert probabilities(logits, Sampling(0.0)).tolist() == [1, 0, 0, 0]
    two = probabilities(logits, Sampling(1.0, top_k=2))
    torch.testing.assert_close(two, torch.tensor([4 / 7, 3 / 7, 0, 0]))
    nucleus = probabilities(logits, Sampling(1.0, top_p=0.65))
    torch.testing.assert_close(nucleus, torch.tensor([4 / 7, 3 / 7, 0, 0]))
    warm = probabilities(logits, Sampling(2.0))
    roots = torch.tensor([0.4, 0.3, 0.2, 0.1]).sqrt()
    torch.testing.assert_close(warm, roots / roots.sum())


@pytest.mark.parametrize("sampling", [PLAIN, FILTERED], ids=["plain", "filtered"])
def test_block_verification_follows_the_target(
    target: PreTrainedModel,
    drafter: PreTrainedModel,
    next_logits: Logits,
    sampling: Sampling,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RULES, "token", block)
    counts = drawn(target, ModelDrafter(drafter), sampling, 2)
    assert chi_square(counts, exact_joint(target, next_logits, sampling)) > 1e-3


def random_rows(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """p [n + 1, VOCAB] and q [n, VOCAB] that differ visibly."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.softmax(1.5 * torch.randn(n + 1, VOCAB, generator=generator, dtype=torch.float64), -1)
    q = torch.softmax(1.5 * torch.randn(n, VOCAB, generator=generator, dtype=torch.float64), -1)
    return p, q


@pytest.mark.parametrize("seed", range(4))
def test_block_accepts_no_less_than_token_in_expectation(seed: int) -> None:
    """Mean accepted tokens over 3,000 drafts: block's is not below token's by more than noise."""
    p, q = random_rows(seed, 4)
    accepted = {}
    for name, rule in {"token": token, "block": block}.items():
        generator = torch.Generator().manual_seed(seed)
        runs = [int(rule(p, q, sample(q, generator), generator)[0]) for _ in range(3000)]
        accepted[name] = np.array(runs)
    noise = np.sqrt((accepted["block"].var() + accepted["token"].var()) / 3000)
    assert accepted["block"].mean() - accepted["token"].mean() > -3 * noise


def test_lenience_of_one_is_the_token_rule_and_less_accepts_more() -> None:
    p, q = random_rows(0, 4)
    strict, lenient = 0, 0
    for seed in range(500):
        drafted = sample(q, torch.Generator().manual_seed(seed))
        generators = [torch.Generator().manual_seed(seed) for _ in range(3)]
        exact = token(p, q, drafted, generators[0])
        assert lenience(p, q, drafted, generators[1], factor=1.0) == exact
        strict += int(exact[0])
        lenient += int(lenience(p, q, drafted, generators[2], factor=0.5)[0])
    assert lenient > strict
