"""Objectives on test prompts: pairs of seeds, intervals over prompts and seeds, and what few seeds can say at most."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from specalign.analysis.held_out import (
    HELD_OUT,
    PromptScore,
    as_json,
    collect,
    compare,
    differences,
    mean,
    read_held_out,
    read_scores,
    swapped_share,
)
from specalign.errors import UserError
from specalign.files import write_json, write_jsonl
from specalign.reports.held_out import held_out_lines

Arm = dict[str, list[PromptScore]]


def arm(
    generator: np.random.Generator, prompts: np.ndarray, level: float, n_seeds: int, spread: float
) -> dict[str, list[PromptScore]]:
    """Prompts have effects that all share; a seed moves an objective, a prompt and a seed move each value."""
    found = {}
    for seed in range(n_seeds):
        own = (
            level
            + prompts
            + spread * generator.standard_normal()
            + 0.03 * generator.standard_normal(len(prompts))
        )
        found[f"seed-{seed}"] = [
            PromptScore(f"p{i}", 10 + i % 7, float(value), float(value) / 2, 4, 7 + i % 7, 1 + float(value))
            for i, value in enumerate(own)
        ]
    return found


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_intervals_hold_the_difference_as_often_as_they_say(n_seeds: int, spread: float) -> None:
    """300 studies of a true difference of 0.05, over new prompts and new seeds; 95 % less three standard errors."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        prompts = 0.05 * generator.standard_normal(40)
        found = {
            "a": arm(generator, prompts, 0.35, n_seeds, spread),
            "b": arm(generator, prompts, 0.3, n_seeds, spread),
        }
        difference = compare(found, "a", "b", "alpha").difference
        assert difference.low is not None
        assert difference.high is not None
        held += difference.low <= 0.05 <= difference.high
    assert held / 300 >= 0.912


def test_three_pairs_of_seeds_can_say_one_in_eight() -> None:
    assert swapped_share([0.01, 0.02, 0.03]) == 1 / 8
    assert swapped_share([0.01]) == 1 / 2
    assert swapped_share([-0.01, -0.02, -0.03, -0.1, -0.1]) == 1 / 32
    assert swapped_share([0.03, -0.01, 0.02]) == 2 / 8


def test_means_are_pooled_over_positions() -> None:
    one = PromptScore("a", 30, 0.4, 0.2, 4, 27, 1.5)
    other = dataclasses.replace(one, prompt_id="b", n_positions=10, alpha=0.8)
    assert mean([one, other], "alpha") == pytest.approx((30 * 0.4 + 10 * 0.8) / 40)


def test_only_pairs_of_seeds_are_compared_and_only_on_the_same_prompts() -> None:
    generator = np.random.default_rng(1)
    a, b, c = (arm(generator, np.zeros(5), 0.3, 3, 0.0) for _ in range(3))
    assert compare({"a": a, "b": {"seed-2": b["seed-2"]}}, "a", "b", "alpha").n_seeds == 1
    assert [(d.first, d.second) for d in differences({"a": a, "b": b, "c": c}, "tau")] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    others = {
        seed: [dataclasses.replace(score, prompt_id="x") for score in scores] for seed, scores in b.items()
    }
    with pytest.raises(UserError, match="different test prompts"):
        compare({"a": a, "b": others}, "a", "b", "alpha")


def test_the_runs_of_a_study_are_collected_read_back_and_shown(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    found = {name: arm(generator, np.zeros(6), level, 3, 0.01) for name, level in (("jsd", 0.5), ("kl", 0.3))}
    for name, seeds in found.items():
        for seed, scores in seeds.items():
            (tmp_path / name / seed).mkdir(parents=True)
            write_jsonl(tmp_path / name / seed / "held_out.jsonl", map(dataclasses.asdict, scores))
    assert collect(tmp_path) == found
    assert held_out_lines(read_held_out(tmp_path)) == []
    write_json(tmp_path / HELD_OUT, as_json(found))
    assert read_held_out(tmp_path) == found
    text = "\n".join(held_out_lines(found))
    assert "6 test prompts, which chose nothing" in text
    assert "0.125 at best" in text
    assert "less jsd's" in text


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "held_out.jsonl"
    path.write_text(json.dumps({"prompt_id": "a", "alpha": 1}) + "\n")
    with pytest.raises(UserError, match="line 1: n_positions"):
        read_scores(path)
