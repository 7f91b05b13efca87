"""A reader with docs/metrics.md and the raw files alone recomputes the report: independent of specalign's code."""

import json
import re
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
    answered = folder.parent / "answered.jsonl"
    rows = [json.loads(line) for line in data_file.read_text().splitlines()]
    rows[0]["reference"] += ". W3 w4! #### 1,200"
    answered.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drafters = [f"{name}={models_folder / name}" for name in ("copy", "small")]
    words = f"--target.model {models_folder / 'target'} --data.source {answered} --output {folder}".split()
    words += [
        "--data.split",
        "all",
        "--decoding.max-new-tokens",
        "16",
        "--decoding.repeats",
        "2",
        "--decoding.student-alone",
    ]
    run(parse_run([*words, "--drafter", *drafters]))
    return folder


def close(expected: Any) -> Any:
    return None if expected is None else pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_every_figure_follows_from_the_records(run_folder: Path) -> None:
    every = pd.read_json(run_folder / "records.jsonl", lines=True, dtype={"prompt_id": str})
    probes = pd.read_json(run_folder / "probes.jsonl", lines=True, dtype={"prompt_id": str})
    records, alone = every[every["rule"] != "alone"], every[every["rule"] == "alone"]
    tables = [
        pd.DataFrame(columns).assign(order=int(order))
        for order, columns in zip(records["order"], records["steps"], strict=True)
    ]
    steps = pd.concat(tables).merge(records[["order", "method", "temperature", "n_prompt_tokens"]], on="order")
    steps["total_s"] = steps.draft_s + steps.verify_s + steps.rest_s
    before = steps.groupby("order").n_emitted.cumsum() - steps.n_emitted
    steps["context"] = steps.n_prompt_tokens + before
    rows = json.loads((run_folder / "result.json").read_text())["rows"]
    assert len(rows) == 8
    for row in rows:
        ours, target = (part(records, row, method) for method in (row["method"], "target"))
        our_steps, target_steps = (part(steps, row, method) for method in (row["method"], "target"))
        check_times(row, ours, target, our_steps)
        check_ceilings(row, ours, our_steps, probes)
        if row["method"] != "target":
            check_acceptance(row, our_steps)
            check_costs(row, our_steps, target_steps)
            check_quality(row, ours, target, part(alone, row, row["method"]))
            check_probes(row, our_steps, target_steps, probes)


def part(table: pd.DataFrame, row: dict[str, Any], method: str) -> pd.DataFrame:
    return table[(table.method == method) & (table.temperature == row["temperature"])]


def check_times(row: dict[str, Any], ours: pd.DataFrame, plain: pd.DataFrame, steps: pd.DataFrame) -> None:
    n, n_plain = ours.token_ids.map(len).sum(), plain.token_ids.map(len).sum()
    assert row["tokens_per_s"]["value"] == close(n / ours.wall_s.sum())
    if row["method"] != "target":
        assert row["whole_speedup"]["value"] == close(plain.wall_s.sum() / n_plain * n / ours.wall_s.sum())
        outside = (ours.wall_s - ours.decode_s).sum() / n_plain
        assert row["speedup"]["value"] == close(
            plain.wall_s.sum() / n_plain / (outside + ours.decode_s.sum() / n)
        )
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
    tau, plain_s = steps.n_emitted.mean(), plain[["verify_s", "rest_s"]].median().sum()
    left = tau * plain_s - full[["verify_s", "rest_s"]].median().sum()
    assert row["break_even_c"] == close(left / gamma / plain.verify_s.median() if left > 0 else None)
    alpha = row["alpha_counted"]["value"]
    assert row["leviathan_speedup"] == close(sum(alpha**i for i in range(gamma + 1)) / (gamma * row["c"] + 1))
    survival = np.cumsum([1, *(share or 0 for share in row["survival_by_position"])])
    by_length = steps.groupby("n_drafted").total_s
    seconds = (by_length.size() * by_length.median()).sum()
    predicted = survival[steps.n_drafted].sum() / seconds * plain.total_s.median()
    assert row["predicted_speedup"] == close(predicted)


def check_ceilings(row: dict[str, Any], ours: pd.DataFrame, steps: pd.DataFrame, probes: pd.DataFrame) -> None:
    sizes = probes[probes.kind == "model"].set_index("method")
    nothing = pd.Series({"bytes_per_step": 0, "n_multiplied": 0})
    p, q = sizes.loc["target"], sizes.loc[row["method"]] if row["method"] in sizes.index else nothing
    drafted, emitted = steps.n_drafted, steps.n_emitted
    n_bytes = len(steps) * p.bytes_per_step + drafted.sum() * q.bytes_per_step
    least_s = n_bytes / probes[probes.kind == "copy"].bytes_per_s.median()
    assert row["ceiling_tokens_per_s"] == close(emitted.sum() / least_s)
    assert row["bandwidth_utilisation"] == close(least_s / ours.decode_s.sum())
    if row["method"] != "target":
        c = q.bytes_per_step / p.bytes_per_step
        assert row["mbsu"] == close(emitted.mean() / (row["gamma"] * c + 1))
        work = (drafted * q.n_multiplied + (drafted + 1) * p.n_multiplied).sum()
        assert row["flop_ratio"] == close(work / emitted.sum() / p.n_multiplied)


def check_probes(row: dict[str, Any], steps: pd.DataFrame, plain: pd.DataFrame, probes: pd.DataFrame) -> None:
    forced = part(probes[probes.kind == "forced"], row, row["method"]).overlap.explode().dropna()
    assert (row["alpha_teacher_forced"] or {"value": None})["value"] == close(
        forced.mean() if len(forced) else None
    )
    calls = probes[probes.kind == "call"].explode("seconds").astype({"seconds": float})

    def seconds(of: pd.DataFrame, n: int, context: int) -> float:
        table = of.groupby(["n_tokens", "context"]).seconds.median().unstack()
        counts = [np.interp(context, table.columns, line) for line in table.to_numpy()]
        return float(np.interp(n, table.index, counts))

    after = "target" if row["method"] == "prompt_lookup" else "draft"
    target_calls = calls[(calls.method == "target") & calls.after.isin(["", after])]
    draft_calls = part(calls, row, row["method"])
    survival = np.cumsum([1, *(share or 0 for share in row["survival_by_position"])])
    total = sum(steps.groupby("n_drafted").rest_s.transform("median"))
    for n, context in zip(steps.n_drafted, steps.context, strict=True):
        total += seconds(target_calls, n + 1, context) + (seconds(draft_calls, n, context) if n else 0)
    plain_s = [seconds(target_calls, 1, context) + plain.rest_s.median() for context in plain.context]
    predicted = survival[steps.n_drafted].sum() / total * np.mean(plain_s)
    assert row["predicted_from_probes"] == close(predicted)


def check_quality(row: dict[str, Any], ours: pd.DataFrame, plain: pd.DataFrame, alone: pd.DataFrame) -> None:
    both = ours.merge(plain, on=["prompt_id", "repeat"], suffixes=("", "_plain"))
    assert row["exact_match_target"] == close((both.token_ids == both.token_ids_plain).mean())
    scorer = RougeScorer(["rouge2", "rougeLsum"], use_stemmer=True)
    kinds = {
        "rouge_vs_reference": (both.reference, both.text),
        "rouge_vs_target": (both.text_plain, both.text),
        "rouge_alone": (alone.reference, alone.text),
    }
    for figure, pairs in kinds.items():
        lines = [
            [re.sub(r"(?<=[.!?])\s+", "\n", text.strip()) for text in pair] for pair in zip(*pairs, strict=True)
        ]
        scores = [scorer.score(*pair) for pair in lines if pair[0]]
        for kind in ("rouge2", "rougeLsum"):
            mean = np.mean([score[kind].fmeasure for score in scores]) if scores else None
            assert (row[figure] or {kind: {"value": None}})[kind]["value"] == close(mean)
    answers = both[both.reference.str.contains("####")].text.str.findall(r"-?\d[\d,]*(?:\.\d+)?").str[-1]
    assert row["accuracy"]["value"] == close((answers.str.replace(",", "") == "1200").mean())
