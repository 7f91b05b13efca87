"""Sweeps: an arm for each combination of values, each a run of its own, ranked by what can be told apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from specalign.config import write_config
from specalign.errors import UserError, run_cli
from specalign.training import folder
from specalign.training.cli import configs, main
from specalign.training.config import TrainConfig
from specalign.training.ranking import ranking
from specalign.training.sweep import arms_of

Tiny = Callable[..., TrainConfig]
SWEEP = ["optimiser.lr=1e-3,3e-2", "objective.hyper.temperature=1,2"]


def test_names_and_values_are_as_they_are_written() -> None:
    assert arms_of(["optimiser.lr=1e-4,3e-4", "rollout.source=student, teacher"]) == {
        "lr=1e-4+source=student": {"optimiser.lr": 1e-4, "rollout.source": "student"},
        "lr=1e-4+source=teacher": {"optimiser.lr": 1e-4, "rollout.source": "teacher"},
        "lr=3e-4+source=student": {"optimiser.lr": 3e-4, "rollout.source": "student"},
        "lr=3e-4+source=teacher": {"optimiser.lr": 3e-4, "rollout.source": "teacher"},
    }
    assert arms_of(["student.layers=[0,29],[0,1,29]"]) == {
        "layers=0_29": {"student.layers": [0, 29]},
        "layers=0_1_29": {"student.layers": [0, 1, 29]},
    }
    assert list(arms_of(["rollout.temperature=0,1", "objective.hyper.temperature=2"])) == [
        "rollout.temperature=0+objective.hyper.temperature=2",
        "rollout.temperature=1+objective.hyper.temperature=2",
    ]
    assert arms_of([]) == {"": {}}


def test_each_arm_is_a_config_of_its_own() -> None:
    words = ["--method", "contrastive", "--objective.hyper", "anchor=1", "margin=0.5", "--output", "runs/x"]
    found = configs([*words, "--sweep", "objective.hyper.anchor=1.2,2", "--sweep=student.start=slice,aligned"])
    assert [config.output.name for config in found] == [
        f"anchor={anchor}+start={start}" for anchor in ("1.2", "2") for start in ("slice", "aligned")
    ]
    assert [config.objective.hyper for config in found[1:3]] == [
        {"anchor": 1.2, "margin": 0.5},
        {"anchor": 2.0, "margin": 0.5},
    ]
    assert [config.optimiser.lr for config in found] == [1e-3, 1e-4] * 2, "the rate is that of each start"
    assert not any(config.sweep for config in found)
    assert found == configs([*words, "--sweep", "objective.hyper.anchor=1.2,2", "student.start=slice,aligned"])
    seeds = configs(["--sweep", "optimiser.lr=1,2", "--seeds", "3", "4", "--output", "x"])
    assert [(str(config.output), config.seed) for config in seeds] == [
        (f"x/lr={lr}/seed-{seed}", seed) for lr in (1, 2) for seed in (3, 4)
    ]
    methods = configs(["--sweep", "optimiser.lr=1,2", "--compare", "sft", "gkd", "--output", "x"])
    assert [str(config.output) for config in methods] == [
        f"x/{m}/lr={lr}" for m in ("sft", "gkd") for lr in (1, 2)
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optimiser.lrr=1,2", r"--sweep: unknown key 'optimiser.lrr'; did you mean 'optimiser.lr'\?"),
        ("optimizer.lr=1,2", r"unknown key 'optimizer'; did you mean 'optimiser'"),
        ("objective.hyper.anchr=1", "unknown hyper-parameter of forward_kl 'anchr'"),
        ("optimiser.lr=fast,1", "--sweep: optimiser.lr = 'fast'"),
        ("optimiser.lr=-1,1", "optimiser.lr must be at least 0, not -1"),
        ("optimiser.batch=[]", r"--sweep: optimiser.batch = \[\]"),
        ("rollout.source=studnt", "did you mean 'student'"),
        ("optimiser.lr", "takes OPTION=VALUE,VALUE"),
        ("optimiser.lr=", "takes OPTION=VALUE,VALUE"),
        ("optimiser.lr=1 optimiser.lr=2", "has optimiser.lr twice: give all its values at once"),
        ("optimiser.lr=1,1", "two arms would be called lr=1"),
        (
            " ".join(f"budget.{key}={','.join(map(str, range(1, 40)))}" for key in ("steps", "tokens")),
            "1,521 arms",
        ),
        ("method=sft,gkd", "--compare METHOD METHOD"),
        ("seed=1,2", "--seeds 0 1"),
        ("data.n_train=4,8", "differs from .* in data, which the runs of one command share"),
    ],
)
def test_what_cannot_be_swept_is_said_in_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        configs(["--sweep", *words.split()])
    assert run_cli("specalign-train", lambda: main(["--sweep", *words.split()])) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_sweep_trains_every_combination_and_ranks_them(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And goes on with what is missing: a run that is there stays as it is."""
    recipe = tmp_path / "recipe.toml"
    write_config(recipe, tiny("distillspec", output=tmp_path / "sweep"))
    main(["--recipe", str(recipe), "--sweep", *SWEEP])
    runs = sorted(path.name for path in (tmp_path / "sweep").iterdir())
    assert runs == ["comparison", *(f"lr={lr}+temperature={t}" for lr in ("1e-3", "3e-2") for t in (1, 2))]
    shown = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "sweep" / "comparison" / "ranking.csv")
    assert sorted(table["run"]) == runs[1:]
    assert (table["alpha"].diff().dropna() <= 0).all()
    for row in table.itertuples():
        lines = folder.read_log(tmp_path / "sweep" / str(row.run))
        last = [line["alpha"] for line in lines if line["kind"] == "validation"][-1]
        assert row.alpha == pytest.approx(last), "the pooled mean of the written student"
        assert str(row.verdict) in shown
    for ending in ("png", "svg", "pdf"):
        assert (tmp_path / "sweep" / "comparison" / f"curves.{ending}").stat().st_size > 1000
    curves = pd.read_csv(tmp_path / "sweep" / "comparison" / "curves.csv")
    assert sorted(set(curves["arm"])) == runs[1:]
    ends = curves.groupby("arm")["alpha"].last().to_dict()
    assert [ends[run] for run in table["run"]] == pytest.approx(list(table["alpha"]))
    written = {name: (tmp_path / "sweep" / name / "model.safetensors").stat().st_mtime_ns for name in runs[2:]}
    (tmp_path / "sweep" / runs[1]).rename(tmp_path / "gone")
    main(["--recipe", str(recipe), "--sweep", *SWEEP])
    assert table.equals(pd.read_csv(tmp_path / "sweep" / "comparison" / "ranking.csv"))
    for name, time in written.items():
        assert (tmp_path / "sweep" / name / "model.safetensors").stat().st_mtime_ns == time


def test_somebodys_file_beside_the_runs_is_not_overwritten(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    write_config(recipe, tiny("aligned", output=tmp_path / "x"))
    (tmp_path / "x" / "comparison").mkdir(parents=True)
    (tmp_path / "x" / "comparison" / "ranking.csv").write_text("mine")
    with pytest.raises(UserError, match=r"ranking.csv is there already, and no run wrote it"):
        main(["--recipe", str(recipe), "--compare", "untrained", "aligned"])
    assert (tmp_path / "x" / "comparison" / "ranking.csv").read_text() == "mine"


def lines_of(values: Sequence[float], weights: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"prompt_id": str(n), "alpha": value, "n_positions": weight}
        for n, (value, weight) in enumerate(zip(values, weights, strict=True))
    ]


def drawn(seed: int, *offsets: float, n: int = 24) -> dict[str, list[dict[str, Any]]]:
    """Runs over the same prompts, that share what a prompt is like and differ by these offsets and some noise."""
    generator = np.random.default_rng(seed)
    weights = generator.integers(5, 40, size=n)
    common = generator.uniform(0.2, 0.6, size=n)
    return {
        f"{number}": lines_of((common + offset + generator.normal(0, 0.02, size=n)).tolist(), weights.tolist())
        for number, offset in enumerate(offsets)
    }


def test_what_differs_is_told_apart_and_what_does_not_is_not() -> None:
    found = ranking(drawn(0, 0.1, 0.1, 0.0), "alpha")
    assert [each.run for each in found][2] == "2"
    assert [each.verdict for each in found] == ["the best", "cannot be told from the best", "lower"]
    middle, last = found[1].ratio, found[2].ratio
    assert middle
    assert last
    assert middle.low
    assert middle.high
    assert last.high
    assert middle.low < 1 < middle.high
    assert last.high < 1


def test_the_value_is_the_pooled_mean_and_the_ratio_that_of_the_values() -> None:
    runs = drawn(1, 0.05, 0.0)
    found = ranking(runs, "alpha")
    for each in found:
        lines = runs[each.run]
        total = sum(line["n_positions"] for line in lines)
        assert each.value == pytest.approx(sum(line["alpha"] * line["n_positions"] for line in lines) / total)
    assert found[1].ratio
    assert found[1].ratio.value == pytest.approx(found[1].value / found[0].value)


def test_among_equals_the_best_is_rarely_called_better() -> None:
    """Five runs of the same kind: with one test a pair, some would be told apart in a third of the cases."""
    told = sum(
        any(each.verdict == "lower" for each in ranking(drawn(seed, *[0.0] * 5), "alpha")) for seed in range(60)
    )
    assert told < 8, "5 % of 60 are 3; 8 or more have a chance of one in a hundred"


def test_equal_runs_and_runs_without_a_hit_are_ranked_too() -> None:
    runs = drawn(2, 0.0)
    same = ranking({"a": runs["0"], "b": runs["0"]}, "alpha")
    assert same[1].verdict == "cannot be told from the best"
    assert math.isclose(same[1].value, same[0].value)
    weights = [line["n_positions"] for line in runs["0"]]
    last = ranking({"a": runs["0"], "none": lines_of([0.0] * 24, weights)}, "alpha")[-1]
    assert (last.run, last.value, last.verdict) == ("none", 0.0, "lower")


def test_runs_over_different_prompts_are_no_ranking() -> None:
    with pytest.raises(UserError, match="validated at different places"):
        ranking({"a": lines_of([0.5, 0.5], [3, 4]), "b": lines_of([0.5, 0.5], [3, 5])}, "alpha")
