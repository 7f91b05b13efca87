"""Can the numbers be trusted? A/A runs show no difference, and a planted one is found with the prompts planned for."""

import dataclasses
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specalign.analysis.families import against_itself, against_plain, between_rows
from specalign.analysis.pairs import pair_lines
from specalign.analysis.speeds import Speeds, speeds_of
from specalign.benchmarks import runner
from specalign.benchmarks.cli import parse_run
from specalign.metrics.comparisons import prompts_needed
from specalign.records import GenerationRecord
from specalign.results import Interval
from specalign.run_files import RunFiles, read_run

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
    assert holds_one(rows["itself"].speedup_joint)
    assert holds_one(rows["itself"].decode_speedup)
    assert rows["small"].tau == rows["twin"].tau
    speeds = speeds_of(a_a_run.records)
    pair = between_rows(speeds).pair(("small", 0.0, 3), ("twin", 0.0, 3))
    assert pair
    assert holds_one(pair.ratio)
    assert not pair.differs
    assert "not shown to differ" in "\n".join(pair_lines(speeds))


def simulated(
    factors: dict[str, float], n_prompts: int, generator: np.random.Generator, temperature: float = 0.0
) -> Speeds:
    """Methods so many times as fast as the plain target, on prompts of many lengths, with 6 % noise a generation.

    Above temperature 0 every method's outputs have lengths of their own.
    """
    lengths = generator.integers(20, 60, n_prompts)
    records = []
    for method, factor in {"target": 1.0, **factors}.items():
        own = generator.integers(20, 60, n_prompts) if temperature else lengths
        for prompt, n in enumerate(own):
            decode_s = n * 0.05 / factor * generator.lognormal(0, 0.06)
            records.append(
                GenerationRecord(
                    method, f"p{prompt}", "", 0, 0, temperature, 0, 1.0, int(method != "target"), "none", True, 0, 5,
                    "ok", token_ids=list(range(n)), decode_s=decode_s, wall_s=decode_s + 1.0 / factor,
                )
            )  # fmt: skip
    return speeds_of(records)


def test_one_row_twice_as_fast_is_used_and_the_others_are_not() -> None:
    speeds = simulated({"fast": 2.0, **{f"row{i}": 1.0 for i in range(9)}}, 12, np.random.default_rng(0))
    family = against_plain(speeds)
    assert [found.first[0] for found in family.comparisons if found.differs] == ["fast"]
    pairs = between_rows(speeds)
    assert {found.first[0] for found in pairs.comparisons if found.differs} == {"fast"}
    assert sum(found.differs for found in pairs.comparisons) == 9
    assert pairs.smallest_p == pytest.approx(4 / 3 * 2 / 2**12)


def test_lengths_of_outputs_do_not_move_the_compared_figure() -> None:
    """At temperature 1 the deviation of the log ratio is that of the seconds, not that of the lengths."""
    speeds = simulated({"same": 1.0}, 40, np.random.default_rng(1), temperature=1.0)
    common, whole = (speeds.speedup(("same", 1.0, 1), figure=figure) for figure in ("common", "whole"))
    assert common
    assert whole
    assert common.deviation < 0.7 * whole.deviation
    assert abs(common.log) < 0.06


def test_a_planted_difference_is_found_with_the_prompts_planned_for() -> None:
    """A pilot of 200 prompts gives the deviation, the planner the prompts: 80 % of 100 runs, standard error 0.04."""
    generator = np.random.default_rng(3)
    (pilot,) = against_plain(simulated({"other": 1.0}, 200, generator)).comparisons
    n = prompts_needed(0.05, pilot.estimate.deviation)
    found = [against_plain(simulated({"other": 1.05}, n, generator)).comparisons[0] for _ in range(100)]
    assert 0.68 <= np.mean([one.differs for one in found]) <= 0.92
    assert np.mean([one.ratio.value for one in found]) == pytest.approx(1.05, rel=0.005)


@pytest.mark.parametrize(("n_prompts", "n_rows"), [(6, 7), (12, 26), (40, 9)])
def test_the_best_of_equal_drafters_is_used_in_at_most_one_of_twenty(n_prompts: int, n_rows: int) -> None:
    """60 runs; benchmarks/simulate_statistics.py makes 4,000 with the published runs' dispersion."""
    generator = np.random.default_rng(n_prompts)
    equal = {f"row{i}": 1.0 for i in range(n_rows)}
    used = 0
    for _ in range(60):
        family = against_plain(simulated(equal, n_prompts, generator))
        used += any(found.differs and found.estimate.log > 0 for found in family.comparisons)
    assert used <= 6


def test_five_prompts_can_show_nothing() -> None:
    speeds = simulated({"fast": 10.0}, 5, np.random.default_rng(0))
    family = against_plain(speeds)
    assert not family.can_show
    assert family.comparisons[0].ratio.low is None
    assert family.comparisons[0].detectable is None
    two = simulated({"fast": 10.0, "slow": 1.0}, 5, np.random.default_rng(0))
    assert "nothing can be shown" in "\n".join(pair_lines(two))


def test_dozens_of_pairs_are_folded_with_those_that_differ_first() -> None:
    speeds = simulated({"fast": 2.0, **{f"row{i}": 1.0 for i in range(5)}}, 12, np.random.default_rng(0))
    lines = pair_lines(speeds)
    assert sum("x [" in line for line in lines) == 10
    assert "5 of 15 pairs differ" in lines[-2]
    assert "5 pairs of smaller differences are not listed" in lines[-2]
    assert all("fast" in line for line in lines[3:8])


def test_a_run_repeated_is_compared_with_itself() -> None:
    generator = np.random.default_rng(0)
    seconds = generator.lognormal(0, 0.02, (8, 4))
    same, slow = (
        against_itself(
            speeds_of(
                GenerationRecord(
                    "target", f"p{prompt}", "", repeat, 0, 0.0, 0, 1.0, 0, "none", True, 0, 5, "ok",
                    token_ids=list(range(20)), decode_s=value, wall_s=value,
                )
                for prompt in range(8)
                for repeat in range(4)
                for value in [seconds[prompt, repeat] * factor ** (repeat % 2)]
            )
        ).comparisons[0]
        for factor in (1, 2)
    )  # fmt: skip
    assert not same.differs
    assert slow.differs
    assert slow.ratio.value == pytest.approx(2, rel=0.05)
