"""Training curves from train.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specalign.errors import UserError
from specalign.files import atomic_path
from specalign.training.folder import read_log

PANELS = (
    ("train", "kd", "loss on training tokens"),
    ("validation", "alpha", "alpha: mean of sum min(p, q)"),
    ("validation", "agreement", "argmax agreement"),
    ("validation", "tau", "expected tokens per target call"),
)
"""(kind of line, field, title)."""
SCALES = (("n_tokens", "trained tokens"), ("wall_s", "wall-clock time, validation included (s)"))
"""(field, axis label)."""


def plot_runs(runs: Sequence[Path]) -> Path:
    """Draw loss and validation metrics over trained tokens and over seconds, one line a run, into the first run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logs = {run: _require_log(run) for run in runs}
    figure, axes = pyplot.subplots(
        len(SCALES), len(PANELS), figsize=(16, 7), layout="constrained", sharey="col"
    )
    for row, (scale, label) in zip(axes, SCALES, strict=True):
        for axis, (kind, name, title) in zip(row, PANELS, strict=True):
            for run, lines in logs.items():
                points = [(line[scale], line[name]) for line in lines if line["kind"] == kind]
                axis.plot(*zip(*points, strict=True), marker=".", label=run.name) if points else None
            axis.set(title=title, xlabel=label)
            axis.grid(alpha=0.3)
    axes[0, 1].legend()
    target = runs[0] / "train.png"
    with atomic_path(target) as partial:
        figure.savefig(partial, format="png", dpi=120)
    pyplot.close(figure)
    return target


def _require_log(run: Path) -> list[dict[str, Any]]:
    lines = read_log(run)
    if not lines:
        raise UserError(f"{run} has no train.jsonl with lines in it")
    return lines
