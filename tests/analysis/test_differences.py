"""Can the numbers be trusted? A/A runs show no difference, and a planted one is found with the prompts planned for."""

import dataclasses
import json
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specalign.analysis.differences import Difference, difference_lines, differences
from specalign.analysis.summary import seconds_per_token
from specalign.benchmarks import runner
from specalign.benchmarks.cli import parse_run
from specalign.metrics.comparisons import prompts_needed
from specalign.metrics.statistics import ratio_of_ratios_interval
from specalign.probes import RunFiles, read_run
from specalign.results import GenerationRecord, Interval

N_PROMPTS = 12


class NoisyClock:
    """A virtual clock: from one mark to the next 1 ms passes on average, give or take 20 %."""

    generator = np.random.default_rng(0)
    now = 0.0

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def mark(self) -> float:
        NoisyClock.now += 1e-3 * self.generator.lognormal(0, 0.2)
        return NoisyClock.now

    settle = mark

    def seconds(self, start: float, end: float) -> float:
        return end - start


@pytest.fixture
def a_a_run(
    bench: Callable[..., list[str]], models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunFiles:
    """The target, the target again under another name, a drafter and its twin, timed by a noisy clock."""
    load = runner.load_suite

    def with_itself(config: Any) -> Any:
        suite = load(config)
        return dataclasses.replace(suite, drafters=suite.drafters | {"itself": None})

    monkeypatch.setattr(runner, "load_suite", with_itself)
    monkeypatch.setattr(import_module("specalign.decoding.generate"), "Clock", NoisyClock)
    data = tmp_path / "data.jsonl"
    rows = [{"document": " ".join(f"w{(i * 7 + j) % 60}" for j in range(4 + i % 5))} for i in range(N_PROMPTS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    twin = f"twin={models_folder / 'small'}"
    words = bench("--include", "--decoding.temperatures", "0", "--data.source", str(data), "--drafter", twin)
    runner.run(parse_run(words[1:]))
    return read_run(tmp_path / "run")


def holds_one(found: Interval | None) -> bool:
    assert found
    assert found.low is not None
    assert found.high is not None
    return found.low <= 1 <= found.high


def test_a_method_against_itself_shows_no_difference(a_a_run: RunFiles) -> None:
    rows = {row.method: row for row in a_a_run.result.rows}
    assert holds_one(rows["itself"].speedup)
    assert holds_one(rows["itself"].decode_speedup)
    speeds = seconds_per_token(a_a_run.records)
    ours, theirs = speeds["small (gamma 3)"], speeds["twin (gamma 3)"]
    one = [1.0] * N_PROMPTS
    assert holds_one(
        ratio_of_ratios_interval((list(theirs.values()), one), ([ours[key] for key in theirs], one))
    )
    assert rows["small"].tau == rows["twin"].tau
    pairs = {(found.first, found.second): found for found in differences(a_a_run.records)}
    alike = [{"target", "itself (gamma 3)"}, {"small (gamma 3)", "twin (gamma 3)"}]
    assert [found.significant for pair, found in pairs.items() if set(pair) in alike] == [False, False]
    assert "no significant difference" in "\n".join(difference_lines(a_a_run.records))


def measured(n_prompts: int, slower: float, generator: np.random.Generator) -> Difference:
    """Two methods on prompts of many lengths, the second so much slower, with 6 % noise a generation."""
    lengths = generator.integers(10, 60, n_prompts)
    records = [
        GenerationRecord(
            method, f"p{prompt}", "", 0, 0, 0.0, 0, 1.0, 0, "none", True, 0, 5, "ok",
            token_ids=list(range(n)), wall_s=n * 0.05 * factor * generator.lognormal(0, 0.06),
        )
        for prompt, n in enumerate(lengths)
        for method, factor in (("fast", 1.0), ("slow", slower))
    ]  # fmt: skip
    (found,) = differences(records)
    return found


def test_a_planted_3_percent_is_found_with_the_prompts_planned_for() -> None:
    """A pilot of 200 prompts gives the deviation, the planner the prompts: 80 % of 150 runs, standard error 0.033."""
    generator = np.random.default_rng(3)
    pilot = measured(200, 1.0, generator)
    assert pilot.deviation == pytest.approx(0.06 * math.sqrt(2), rel=0.15)
    n = prompts_needed(0.03, pilot.deviation or math.nan)
    found = [measured(n, 1.03, generator) for _ in range(150)]
    assert 0.7 <= sum(one.significant for one in found) / len(found) <= 0.9
    assert np.mean([one.ratio for one in found]) == pytest.approx(1 / 1.03, rel=0.002)
    assert np.mean([one.detectable or math.nan for one in found]) == pytest.approx(0.03, rel=0.1)


def test_where_nothing_was_planted_5_percent_are_called_significant() -> None:
    generator = np.random.default_rng(4)
    found = [measured(60, 1.0, generator).significant for _ in range(200)]
    assert 0.01 <= sum(found) / len(found) <= 0.1
