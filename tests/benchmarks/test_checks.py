"""The trust verdict: each check passes on a sound run and fails on the fault that it is there for."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from specalign.benchmarks.checks import trust_checks
from specalign.benchmarks.comparison import divergent, summarise
from specalign.results import BenchmarkResult, Check, GenerationRecord, ModelInfo, StepTrace

N_PROMPTS, N_TOKENS = 6, 8


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
        records: Sequence[GenerationRecord], ties: dict[int, bool] | None = None, **stamp: Any
    ) -> dict[str, Check]:
        checks = trust_checks(result(2 * N_PROMPTS, **stamp), records, summarise(records, ties))
        return {check.name: check for check in checks}

    return judge


def test_a_sound_run_passes_everything(sound: list[GenerationRecord], verdict: Verdict) -> None:
    assert {check.passed for check in verdict(sound).values()} == {True}


def test_a_divergence_fails_unless_it_is_a_tie(sound: list[GenerationRecord], verdict: Verdict) -> None:
    sound[3] = dataclasses.replace(sound[3], token_ids=[*range(N_TOKENS - 1), 99])
    ((ours, theirs),) = divergent(sound)
    assert (ours.order, theirs.order) == (3, 2)
    assert verdict(sound)["lossless"].passed is False
    assert verdict(sound, {3: True})["lossless"].passed is True
    assert "1 leave it at a tie" in verdict(sound, {3: True})["lossless"].detail


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
    assert "+40%" in check.detail


def test_a_busy_machine_and_an_unknown_source(sound: list[GenerationRecord], verdict: Verdict) -> None:
    assert verdict(sound, hardware={"busy_before": 0.6})["quiet machine"].passed is False
    assert verdict(sound, hardware={})["quiet machine"].passed is None
    assert verdict(sound, git={"commit": "1" * 40, "dirty": True})["known source"].passed is False
    assert verdict(sound, git={})["known source"].passed is None
