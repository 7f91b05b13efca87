"""A reader with docs/metrics.md and records.jsonl alone recomputes the report: independent of specalign's code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.optimize import brentq

from specalign.benchmarks.cli import parse_run
from specalign.benchmarks.runner import run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, data_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("recompute") / "run"
    drafters = [f"{name}={models_folder / name}" for name in ("copy", "small")]
    words = f"--target.model {models_folder / 'target'} --data.source {data_file} --output {folder}".split()
    run(
        parse_run(
            [*words, "--decoding.max-new-tokens", "16", "--decoding.repeats", "2", "--drafter", *drafters]
        )
    )
    return folder


def close(expected: Any) -> Any:
    return None if expected is None else pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_every_figure_follows_from_the_records(run_folder: Path) -> None:
    records = pd.read_json(run_folder / "records.jsonl", lines=True, dtype={"prompt_id": str})
    tables = [
        pd.DataFrame(columns).assign(order=int(order))
        for order, columns in zip(records["order"], records["steps"], strict=True)
    ]
    steps = pd.concat(tables).merge(records[["order", "method", "temperature"]], on="order")
    steps["total_s"] = steps.draft_s + steps.verify_s + steps.rest_s
    rows = json.loads((run_folder / "result.json").read_text())["rows"]
    assert len(rows) == 8
    for row in rows:
        ours, target = (part(records, row, method) for method in (row["method"], "target"))
        our_steps, target_steps = (part(steps, row, method) for method in (row["method"], "target"))
        check_times(row, ours, target, our_steps)
        if row["method"] != "target":
            check_acceptance(row, our_steps)
            check_costs(row, our_steps, target_steps)
            check_quality(row, ours, target)


def part(table: pd.DataFrame, row: dict[str, Any], method: str) -> pd.DataFrame:
    return table[(table.method == method) & (table.temperature == row["temperature"])]


def check_times(row: dict[str, Any], ours: pd.DataFrame, plain: pd.DataFrame, steps: pd.DataFrame) -> None:
    n, n_plain = ours.token_ids.map(len).sum(), plain.token_ids.map(len).sum()
    assert row["tokens_per_s"]["value"] == close(n / ours.wall_s.sum())
    if row["method"] != "target":
        assert row["speedup"]["value"] == close(plain.wall_s.sum() / n_plain * n / ours.wall_s.sum())
        assert row["decode_speedup"]["value"] == close(plain.decode_s.sum() / n_plain * n / ours.decode_s.sum())
    assert row["time"]["prefill_ms"] == close(1000 * ours.prefill_s.mean())
    assert row["time"]["verify_ms"] == close(1000 * steps.verify_s.mean())
    latency = np.repeat(steps.total_s / steps.n_emitted, steps.n_emitted)
    assert row["latency_p95_ms"] == close(1000 * np.quantile(latency, 0.95))


def check_acceptance(row: dict[str, Any], steps: pd.DataFrame) -> None:
    accepted, examined, drafted = steps.n_accepted, steps.n_examined, steps.n_drafted
    if examined.sum():
        assert row["alpha_counted"]["value"] == close(accepted.sum() / examined.sum())
        assert row["alpha_expected"]["value"] == close(steps.overlap.map(sum).sum() / examined.sum())
        assert row["accepted_per_drafted"]["value"] == close(accepted.sum() / drafted.sum())
    assert row["tau"]["value"] == close(steps.n_emitted.mean())
    assert row["tau_by_request"] == close(steps.groupby("order").n_emitted.mean().mean())
    for place in range(1, row["gamma"] + 1):
        risk = (drafted >= place) & ~((examined == accepted) & (accepted < place))
        for name, whole in (("acceptance", examined >= place), ("survival", risk)):
            share = (accepted >= place).sum() / whole.sum() if whole.sum() else None
            assert row[f"{name}_by_position"][place - 1] == close(share)
    assert row["accepted_histogram"] == [(accepted == k).sum() for k in range(row["gamma"] + 1)]


def check_costs(row: dict[str, Any], steps: pd.DataFrame, plain: pd.DataFrame) -> None:
    gamma, full = row["gamma"], steps[steps.n_drafted == row["gamma"]]
    if full.empty:
        assert row["c"] is None
        return
    assert row["c"] == close(full.draft_s.median() / gamma / plain.verify_s.median())
    assert row["verify_ratio"] == close(full.verify_s.median() / plain.verify_s.median())
    price = full[["draft_s", "verify_s", "rest_s"]].median().sum()
    price /= plain[["verify_s", "rest_s"]].median().sum()
    if 1 < price < gamma + 1:
        alpha = brentq(lambda alpha: sum(alpha**i for i in range(gamma + 1)) - price, 0, 1)
        assert row["break_even_alpha"] == pytest.approx(alpha)
    else:
        assert row["break_even_alpha"] == (0 if price <= 1 else None)
    survival = np.cumsum([1, *(share or 0 for share in row["survival_by_position"])])
    by_length = steps.groupby("n_drafted").total_s
    seconds = (by_length.size() * by_length.median()).sum()
    predicted = survival[steps.n_drafted].sum() / seconds * plain.total_s.median()
    assert row["predicted_speedup"] == close(predicted)


def check_quality(row: dict[str, Any], ours: pd.DataFrame, plain: pd.DataFrame) -> None:
    both = ours.merge(plain, on=["prompt_id", "repeat"], suffixes=("", "_plain"))
    assert row["exact_match_target"] == close((both.token_ids == both.token_ids_plain).mean())
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for figure, column in (("rouge_vs_reference", "reference"), ("rouge_vs_target", "text_plain")):
        scores = [
            scorer.score(truth, text)["rougeL"].fmeasure
            for truth, text in zip(both[column], both.text, strict=True)
            if truth.strip()
        ]
        assert row[figure]["rougeL"]["value"] == close(np.mean(scores))
