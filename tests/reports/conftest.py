"""Runs made of plain numbers: what the report is given, without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specalign.files import file_sha256, write_text
from specalign.metrics import METRICS_VERSION
from specalign.records import GenerationRecord, StepTrace
from specalign.results import BenchmarkResult, Check, Interval, ModelInfo, Rouge, SummaryRow, TimeSplit
from specalign.run_files import RECORDS_FILE, record_line, write_result

ACCEPTANCE = {
    "prompt_lookup": 0.12,
    "untrained": 0.01,
    "aligned": 0.31,
    "sft": 0.34,
    "gkd": 0.37,
    "distillspec": 0.38,
    "contrastive": 0.39,
}
N_PROMPTS = 4
MakeRun = Callable[..., Path]


def synthetic_row(method: str, temperature: float, gamma: int) -> SummaryRow:
    """A row whose speed-up follows from i.i.d. acceptance and T_draft = 0.15, T_target(gamma + 1) = 1.5."""
    rouge = Rouge(Interval(0.28, 0.25, 0.31), Interval(0.09, 0.07, 0.11), Interval(0.23, 0.2, 0.26))
    common: dict[str, Any] = {
        "method": method,
        "temperature": temperature,
        "lossless": True,
        "n_requested": N_PROMPTS,
        "n_effective": N_PROMPTS,
        "n_failed": 0,
        "rouge_vs_reference": rouge,
    }
    if method == "target":
        return SummaryRow(
            kind="target", gamma=0, rule="none", tokens_per_s=Interval(18.0, 17.1, 18.8), ms_per_token=55.0,
            speedup=None, decode_speedup=None, time=TimeSplit(300.0, 0.0, 54.0, 1.0), **common,
        )  # fmt: skip
    alpha = ACCEPTANCE[method] * (0.9 if temperature else 1.0)
    survival = [alpha**place for place in range(1, gamma + 1)]
    tau = 1 + sum(survival)
    speed = tau / (1.5 + 0.15 * gamma)
    return SummaryRow(
        kind="lookup" if method == "prompt_lookup" else "model", gamma=gamma,
        rule="token" if temperature else "greedy", tokens_per_s=Interval(18 * speed, 17 * speed, 19 * speed),
        ms_per_token=55 / speed, speedup=Interval(speed, 0.95 * speed, 1.05 * speed),
        speedup_joint=Interval(speed, 0.9 * speed, 1.1 * speed),
        decode_speedup=Interval(1.02 * speed), time=TimeSplit(310.0, 8.0 * gamma, 80.0, 2.0),
        alpha_expected=Interval(alpha, alpha - 0.01, alpha + 0.01),
        alpha_counted=Interval(alpha, alpha - 0.02, alpha + 0.02), tau=Interval(tau, 0.98 * tau, 1.02 * tau),
        acceptance_by_position=[alpha] * gamma, survival_by_position=list(survival),
        accepted_histogram=[10] * (gamma + 1), c=0.15, verify_ratio=1.5, break_even_alpha=0.57,
        predicted_speedup=1.03 * speed, rouge_vs_target=rouge, **common,
    )  # fmt: skip


def synthetic_record(row: SummaryRow, prompt: int) -> GenerationRecord:
    """Two decoding steps that emit two tokens."""
    drafted, nothing = [row.gamma, row.gamma], [0, 0]
    steps = StepTrace(
        n_drafted=drafted, n_examined=[min(row.gamma, 1)] * 2, n_accepted=nothing, n_emitted=[1, 1],
        overlap=[[0.3], [0.3]] if row.gamma else [[], []], draft_s=[0.01, 0.01], verify_s=[0.05, 0.05],
        rest_s=[0.001, 0.001],
    )  # fmt: skip
    return GenerationRecord(
        method=row.method, prompt_id=f"p{prompt}", category="", repeat=0, order=prompt,
        temperature=row.temperature, top_k=0, top_p=1.0, gamma=row.gamma, rule=row.rule, lossless=True, seed=0,
        n_prompt_tokens=12, status="ok", token_ids=[5, 6], finish_reason="length", text="a b",
        reference="a c", steps=steps, prefill_s=0.3, decode_s=0.122, wall_s=0.43,
    )  # fmt: skip


def synthetic_result(gammas: Sequence[int] = (3,)) -> BenchmarkResult:
    """A complete run of every method at temperatures 0 and 1."""
    rows = [synthetic_row("target", temperature, 0) for temperature in (0.0, 1.0)]
    rows += [synthetic_row(name, t, gamma) for t in (0.0, 1.0) for name in ACCEPTANCE for gamma in gammas]
    names = [name for name in ACCEPTANCE if name != "prompt_lookup"]
    return BenchmarkResult(
        status="complete", suite="demo", command=["specalign-bench", "run", "--suite", "demo.toml"],
        config={"data": {"source": "builtin:docstrings", "split": "test"}, "decoding": {"max_new_tokens": 48}},
        provenance={
            "specalign": "0.1.0", "created": "2026-11-24T08:00:00+00:00", "dtype": "float32", "n_prompts": N_PROMPTS,
            "n_truncated_prompts": 0, "hardware": {"cpu": "AMD EPYC", "torch_threads": 2, "platform": "Linux"},
            "packages": {"torch": "2.13.0"}, "git": {"commit": "abc1234"},
        },
        metrics_version=METRICS_VERSION, target=ModelInfo("target", "builtin:smollm2", 134_500_000, 30, 538_000_000),
        drafters=[ModelInfo(name, f"runs/{name}", 42_000_000, 4, 75_000_000, name, 8192) for name in names],
        n_requested=N_PROMPTS * len(rows), n_effective=N_PROMPTS * len(rows), n_failed=0, rows=rows,
        checks=[Check("greedy output", True, "0 of 28 leave the target's")],
    )  # fmt: skip


def write_run(folder: Path, result: BenchmarkResult) -> Path:
    """The files of a run: a record for every row and prompt, and the result with their hash."""
    records = [synthetic_record(row, prompt) for row in result.rows for prompt in range(N_PROMPTS)]
    write_text(folder / RECORDS_FILE, "".join(map(record_line, records)))
    write_result(folder, replace(result, records_sha256=file_sha256(folder / RECORDS_FILE)))
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(name: str = "run", gammas: Sequence[int] = (3,), **changes: Any) -> Path:
        return write_run(tmp_path / name, replace(synthetic_result(gammas), **changes))

    return make
