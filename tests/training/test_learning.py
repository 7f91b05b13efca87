"""The learning curves in training/README.md are those of their file."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHOWN = (0, 1, 10, 20, 50, 100)


def test_the_table_comes_out_of_its_file() -> None:
    curves = json.loads((ROOT / "benchmarks/results/2026-11-27_learning_cpu-2core.json").read_text())["curves"]
    text = (ROOT / "training" / "README.md").read_text(encoding="utf-8")
    rows = [
        f"| {curve['method']} | {curve['lr']:g} | {curve['warmup_steps']} | "
        + " | ".join(
            f"{point['alpha']:.3f} / {point['agreement']:.3f}"
            for point in curve["points"]
            if point["step"] in SHOWN
        )
        + " |"
        for curve in curves
        if curve["start"] == "aligned"
    ]
    assert rows
    for row in rows:
        assert row in text
