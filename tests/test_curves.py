"""Learning curves: every validation is a row of the table, every run a line of its arm's colour."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from specalign.curves import LOG, curves_of, draw, frame, labels, runs_below
from specalign.errors import UserError


def log(run: Path, alphas: list[float], **recipe: Any) -> Path:
    """A run that trained two steps between its validations."""
    run.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for step, alpha in enumerate(alphas):
        place = {"step": 2 * step, "n_tokens": 100 * step, "train_s": 3.0 * step, "wall_s": 4.0 * step}
        lines.append({"kind": "train", **place, "kd": 1.0 / (1 + step)})
        lines.append(
            {
                "kind": "validation",
                **place,
                "alpha": alpha,
                "alpha_se": 0.01,
                "agreement": alpha,
                "tau": 1 + alpha,
            }
        )
    (run / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "recipe.toml").write_text("".join(f"{key} = {value}\n" for key, value in recipe.items()))
    return run


def test_the_table_has_every_validation_by_step_tokens_and_seconds(tmp_path: Path) -> None:
    log(tmp_path / "gkd" / "seed-0", [0.1, 0.3])
    log(tmp_path / "gkd" / "seed-1", [0.1, 0.4])
    log(tmp_path / "sft", [0.1, 0.2, 0.25], seed=7)
    found = frame(curves_of(runs_below(tmp_path)))
    assert found.columns[:6].tolist() == ["arm", "seed", "step", "n_tokens", "train_s", "wall_s"]
    assert found[["arm", "seed"]].drop_duplicates().to_numpy().tolist() == [["gkd", 0], ["gkd", 1], ["sft", 7]]
    last = found[found["seed"] == 1].iloc[-1]
    assert last[["step", "n_tokens", "train_s", "wall_s", "alpha", "tau"]].tolist() == [
        2,
        100,
        3.0,
        4.0,
        0.4,
        1.4,
    ]
    assert len(found) == 7


def test_the_picture_has_a_line_a_run_and_a_colour_an_arm(tmp_path: Path) -> None:
    for name in ("gkd/seed-0", "gkd/seed-1", "sft"):
        log(tmp_path / name, [0.1, 0.3])
    figure = draw(curves_of(runs_below(tmp_path)))
    assert len(figure.axes) == 8
    lines = figure.axes[1].get_lines()
    assert [np.asarray(line.get_xydata()).tolist() for line in lines] == 3 * [[[0, 0.1], [100, 0.3]]]
    assert [line.get_color() for line in lines] == ["C0", "C0", "C1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gkd", "sft"]


def test_a_run_without_a_log_has_no_curve(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no train\.jsonl with lines in it"):
        curves_of({"x": tmp_path})
    assert runs_below(tmp_path) == {}
    alone = log(tmp_path / "one", [0.1])
    assert runs_below(alone) == {"one": alone}
    assert pd.isna(frame(curves_of({"one": alone}))["seed"].iloc[0])


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (["/a/gkd"], ["gkd"]),
        (["/a/gkd", "/a/sft"], ["gkd", "sft"]),
        (["/a/gkd/seed-0", "/a/sft/seed-0"], ["gkd/seed-0", "sft/seed-0"]),
        (["/a/gkd/seed-0", "/b/gkd/seed-0", "/b/gkd/seed-1"], ["a/gkd/seed-0", "b/gkd/seed-0", "b/gkd/seed-1"]),
        (["/a/gkd", "/a/gkd"], ["gkd"]),
        (["/gkd", "/a/gkd"], ["//gkd", "a/gkd"]),
    ],
)
def test_every_run_has_a_label_of_its_own(runs: list[str], expected: list[str]) -> None:
    assert list(labels([Path(run) for run in runs])) == expected
