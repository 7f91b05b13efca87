"""The trust verdict: each check passes on a sound run and fails on the fault that it is there for."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from specalign.analysis.summary import divergent, summarise
from specalign.analysis.verdict import trust_checks
from specalign.probes import CallProbe, SampledProbe
from specalign.records import GenerationRecord, StepTrace
from specalign.results import BenchmarkResult, Check, ModelInfo

N_PROMPTS, N_TOKENS = 6, 8
PROBES = [
    CallProbe("target", None, 5, 1, [0.05]),
    CallProbe("target", None, 5, 4, [0.06]),
    CallProbe("ours", 0.0, 5, 3, [0.003]),
]


def plain_steps(n: int, verify_s: float) -> StepTrace:
    return StepTrace([0] * n, [0] * n, [0] * n, [1] * n, [[]] * n, [0.0] * n, [verify_s] * n, [0.001] * n)


def drafted_steps(n_full: int, verify_s: float) -> StepTrace:
    """Steps that draft three tokens and keep them all."""
    return StepTrace(
        [3] * n_full, [3] * n_full, [3] * n_full, [4] * n_full, [[1.0] * 3] * n_full,
        [0.003] * n_full, [verify_s] * n_full, [0.001] * n_full,
    )  # fmt: skip


def generation(order: int, method: str, prompt: int, **changes: Any) -> GenerationRecord:
    plain = method == "target"
    steps = plain_steps(N_TOKENS, 0.05) if plain else drafted_steps(N_TOKENS // 4, 0.06)
    seconds = math.fsum([*steps.draft_s, *steps.verify_s, *steps.rest_s])
    record = GenerationRecord(
        method, f"p{prompt}", "", 0, order, 0.0, 0, 1.0, 0 if plain else 3, "none" if plain else "greedy",
        True, 0, 5, "ok", token_ids=list(range(N_TOKENS)), steps=steps, decode_s=seconds, wall_s=seconds,
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


@pytest.fixture
def sound() -> list[GenerationRecord]:
    pairs = [(method, prompt) for prompt in range(N_PROMPTS) for method in ("target", "ours")]
    return [generation(order, *pair) for order, pair in enumerate(pairs)]


def result(n_requested: int, **provenance: Any) -> BenchmarkResult:
    model = ModelInfo("target", "m", 1, 1, 1)
    stamp = {
        "hardware": {"busy_before": 0.05},
        "git": {"commit": "0" * 40, "dirty": False},
    } | provenance
    return BenchmarkResult("complete", "s", [], {}, stamp, "1", model, [], n_requested, n_requested, 0)


Verdict = Callable[..., dict[str, Check]]


@pytest.fixture
def verdict() -> Verdict:
    def judge(
        records: Sequence[GenerationRecord], divergences: dict[int, str] | None = None, **stamp: Any
    ) -> dict[str, Check]:
        checks = trust_checks(result(2 * N_PROMPTS, **stamp), records, summarise(records, divergences, PROBES))
        return {check.name: check for check in checks}

    return judge


def test_a_sound_run_passes_everything(sound: list[GenerationRecord], verdict: Verdict) -> None:
    assert {check.passed for check in verdict(sound).values()} == {True}


def test_a_divergence_fails_unless_it_is_a_tie(sound: list[GenerationRecord], verdict: Verdict) -> None:
    sound[3] = dataclasses.replace(sound[3], token_ids=[*range(N_TOKENS - 1), 99])
    ((ours, theirs),) = divergent(sound)
    assert (ours.order, theirs.order) == (3, 2)
    assert verdict(sound)["lossless"].passed is False
    assert verdict(sound, {3: "bug"})["lossless"].passed is False
    assert verdict(sound, {3: "tie"})["lossless"].passed is True
    assert "1 leave it at a tie" in verdict(sound, {3: "tie"})["lossless"].detail
    assert "1 within rounding" in verdict(sound, {3: "numeric"})["lossless"].detail


def sampled(order: int, n_accepted: int) -> GenerationRecord:
    """Fifty steps of one draft, which p and q share half of."""
    steps = StepTrace(
        [1] * 50, [1] * 50, [1] * n_accepted + [0] * (50 - n_accepted),
        [2] * n_accepted + [1] * (50 - n_accepted), [[0.5]] * 50, [0.1] * 50, [0.1] * 50, [0.1] * 50,
    )  # fmt: skip
    return generation(order, "ours", order, temperature=1.0, rule="token", steps=steps)


def test_tokens_that_the_target_would_not_have_sampled() -> None:
    def check(observed: float) -> Check:
        probes = [
            SampledProbe(method, "p0", 0, 1.0, 1, 100, value, 8.0)
            for method, value in (("target", 51.0), ("ours", observed))
        ]
        (found,) = (c for c in trust_checks(result(0), [], [], probes) if c.name == "sampler")
        return found

    assert check(54.0).passed is True
    assert check(30.0).passed is False
    assert (
        "ours at temperature 1, gamma 1: its 100 tokens lie at 0.300 of the target's distribution, samples at 0.500"
        in (check(30.0).detail)
    )


def test_drafts_accepted_more_often_than_they_should_be() -> None:
    def check(*n_accepted: int) -> Check:
        records = [sampled(order, n) for order, n in enumerate(n_accepted)]
        (found,) = (c for c in trust_checks(result(0), records, []) if c.name == "sampler")
        return found

    assert check(25, 28, 22, 27).passed is True
    assert check(36, 35, 37, 36).passed is False, "each alone might be chance"
    assert "of 200 examined drafts 0.720 are accepted, where 0.500 should be" in check(36, 35, 37, 36).detail


def test_nothing_sampled_is_not_judged(sound: list[GenerationRecord], verdict: Verdict) -> None:
    assert "sampler" not in verdict(sound)


def test_a_token_that_nothing_accounts_for(sound: list[GenerationRecord], verdict: Verdict) -> None:
    sound[1] = dataclasses.replace(sound[1], token_ids=list(range(N_TOKENS + 1)))
    check = verdict(sound)["token accounting"]
    assert check.passed is False
    assert "[1]" in check.detail


def test_a_failed_or_missing_generation(sound: list[GenerationRecord], verdict: Verdict) -> None:
    assert verdict(sound[:-1])["samples"].passed is False
    failed = dataclasses.replace(sound[-1], status="failed", error="out of memory", token_ids=[], steps=None)
    check = verdict([*sound[:-1], failed])["samples"]
    assert check.passed is False
    assert "out of memory" in check.detail


def test_too_few_prompts_for_the_noise(sound: list[GenerationRecord], verdict: Verdict) -> None:
    noisy = [
        record if record.method == "target" else dataclasses.replace(record, wall_s=record.wall_s * (1 + index))
        for index, record in enumerate(sound)
    ]
    assert verdict(noisy)["resolution"].passed is False
    assert verdict(sound[:2])["resolution"].passed is None


def test_a_machine_that_slows_down(sound: list[GenerationRecord], verdict: Verdict) -> None:
    slower = [
        dataclasses.replace(record, steps=plain_steps(N_TOKENS, 0.07))
        if record.method == "target" and record.order >= N_PROMPTS
        else record
        for record in sound
    ]
    check = verdict(slower)["steady clock"]
    assert check.passed is False
    assert "+40.0%" in check.detail


@pytest.mark.parametrize(("slower", "passed"), [(1.0, True), (1.1, False)])
def test_a_method_must_not_differ_from_itself(
    sound: list[GenerationRecord], verdict: Verdict, slower: float, passed: bool
) -> None:
    """Twelve prompts twice, with 2 % noise; then with second repeats that take a tenth longer."""
    assert "same against itself" not in verdict(sound), "nothing was repeated"
    noise = np.random.default_rng(0)
    records = [
        dataclasses.replace(
            generation(order, method, prompt), repeat=repeat, wall_s=noise.lognormal(0, 0.02) * slower**repeat
        )
        for order, (prompt, method, repeat) in enumerate(
            itertools.product(range(2 * N_PROMPTS), ("target", "ours"), range(2))
        )
    ]
    check = verdict(records)["same against itself"]
    assert check.passed is passed
    assert "the even repeats of 2 rows" in check.detail
    assert ("differs from itself" in check.detail) is not passed


def test_noise_is_not_drift(sound: list[GenerationRecord], verdict: Verdict) -> None:
    """Three of twelve generations twice as slow, at either end: the halves differ by less than they scatter."""
    noisy = [
        dataclasses.replace(record, steps=plain_steps(N_TOKENS, 0.1))
        if record.method == "target" and record.order in (0, 6, 8)
        else record
        for record in sound
    ]
    check = verdict(noisy)["steady clock"]
    assert check.passed is None, "the noise hides a drift of 10 %"
    assert "its own noise explains" in check.detail


def test_a_speed_that_the_cost_model_does_not_explain(sound: list[GenerationRecord], verdict: Verdict) -> None:
    slow = [
        record if record.method == "target" else dataclasses.replace(record, decode_s=1.2 * record.decode_s)
        for record in sound
    ]
    assert verdict(sound)["prediction"].passed is True
    assert verdict(slow)["prediction"].passed is False
    assert "20% apart" in verdict(slow)["prediction"].detail


def test_a_busy_machine_and_an_unknown_source(sound: list[GenerationRecord], verdict: Verdict) -> None:
    assert verdict(sound, hardware={"busy_before": 0.6})["quiet machine"].passed is False
    assert verdict(sound, hardware={"busy_before": 0.0, "busy_during": 0.4})["quiet machine"].passed is False
    assert verdict(sound, hardware={})["quiet machine"].passed is None
    served = {"engine": {"name": "vllm"}}
    at_work = dataclasses.replace(
        result(len(sound), hardware={"busy_before": 0.0, "busy_during": 0.7}), config=served
    )
    (told,) = (check for check in trust_checks(at_work, sound, []) if check.name == "quiet machine")
    assert told.passed is True, "the servers' own work"
    calm = [dataclasses.replace(record, busy=0.02) for record in sound]
    assert verdict(calm)["quiet machine"].passed is True
    burst = verdict([dataclasses.replace(calm[0], busy=0.9), *calm[1:]])["quiet machine"]
    assert burst.passed is False
    assert "more than 25% in 1 of 12 generations" in burst.detail
    assert verdict(sound, git={"commit": "1" * 40, "dirty": True})["known source"].passed is False
    assert verdict(sound, git={})["known source"].passed is None
