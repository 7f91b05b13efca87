"""Training curves from train.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specalign.errors import UserError
from specalign.files import atomic_path
from specalign.training.folder import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    return save(draw(runs), runs[0] / "train.png")


def draw(runs: Sequence[Path]) -> Figure:
    """The same as a figure, that belongs to no window."""
    from matplotlib.figure import Figure

    logs = {label: _require_log(run) for label, run in labels(runs).items()}
    figure = Figure(figsize=(16, 7), layout="constrained")
    axes = figure.subplots(len(SCALES), len(PANELS), sharey="col")
    for row, (scale, scale_label) in zip(axes, SCALES, strict=True):
        for axis, (kind, name, title) in zip(row, PANELS, strict=True):
            for label, lines in logs.items():
                points = [(line[scale], line[name]) for line in lines if line["kind"] == kind]
                axis.plot(*zip(*points, strict=True), marker=".", label=label) if points else None
            axis.set(title=title, xlabel=scale_label)
            axis.grid(alpha=0.3)
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as the file's ending says: .png, .svg or .pdf; the same bytes for the same curves."""
    import matplotlib as mpl

    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    kind = path.suffix.removeprefix(".")
    with atomic_path(path) as partial, mpl.rc_context({"svg.hashsalt": "specalign"}):
        figure.savefig(partial, format=kind, dpi=120, metadata=dates.get(kind))
    return path


def labels(runs: Sequence[Path]) -> dict[str, Path]:
    """Label -> run, each once: the shortest ends of their paths that tell them apart."""
    paths = list(dict.fromkeys(run.absolute() for run in runs))
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        found = {"/".join(path.parts[-length:]): path for path in paths}
        if len(found) == len(paths):
            return found
    return {str(path): path for path in paths}


def _require_log(run: Path) -> list[dict[str, Any]]:
    lines = read_log(run)
    if not lines:
        raise UserError(f"{run} has no train.jsonl with lines in it")
    return lines
