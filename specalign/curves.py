"""Learning curves of training runs, out of train.jsonl: a table for other tools, and a picture.

What trains leaves them beside its runs, what measures beside the drafters' benchmark: neither knows the other.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specalign.errors import UserError
from specalign.files import atomic_path, whole_lines

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LOG, RECIPE, PROVENANCE = "train.jsonl", "recipe.toml", "provenance.json"
"""Files of a training run that other parts read as well."""
COMPARISON = "comparison"
"""Folder beside the runs of a command, with what tells them apart."""
NAME, FORMATS = "curves", ("png", "svg", "pdf")
DEPTH = 4
"""Folders between a comparison and its runs: METHOD/SWEPT/seed-N, and one more."""
COLUMNS = ("arm", "seed", "step", "n_tokens", "train_s", "wall_s", "alpha", "alpha_se", "agreement", "tau")
"""The table's first columns; what else validations say follows."""
PANELS = (
    ("train", "kd", "loss on training tokens"),
    ("validation", "alpha", "alpha: mean of sum min(p, q)"),
    ("validation", "agreement", "argmax agreement"),
    ("validation", "tau", "expected tokens per target call"),
)
"""(kind of line, field, title)."""
SCALES = (
    ("n_tokens", "trained tokens"),
    ("wall_s", "wall-clock time, validation included (s)"),
    ("train_s", "training time (s)"),
)
"""(field, axis label); the first kind of seconds that every curve has is drawn."""


@dataclass(frozen=True)
class Curve:
    """What one training run logged."""

    arm: str
    seed: int | None
    """None where it is not known."""
    lines: Sequence[Mapping[str, Any]]
    """Of train.jsonl."""


def curves_of(runs: Mapping[str, Path]) -> list[Curve]:
    """The curves of training runs, by their labels. Raises UserError for one that has none."""
    found = []
    for label, run in runs.items():
        lines = whole_lines(run / LOG)
        if not lines:
            raise UserError(f"{run} has no {LOG} with lines in it")
        parts = re.fullmatch(r"(?:(.*)/)?seed-(\d+)", label)
        arm, seed = (parts[1] or run.parent.name, int(parts[2])) if parts else (label, _seed(run))
        found.append(Curve(arm, seed, lines))
    return found


def runs_below(folder: Path) -> dict[str, Path]:
    """Label -> training run in a folder, or the folder itself; the label is its path from there."""
    logs = sorted(path for depth in range(DEPTH + 1) for path in folder.glob(f"{'*/' * depth}{LOG}"))
    runs = {path.parent.relative_to(folder).as_posix(): path.parent for path in logs}
    return {folder.resolve().name if label == "." else label: run for label, run in runs.items()}


def labels(runs: Sequence[Path]) -> dict[str, Path]:
    """Label -> run, each once: the shortest ends of their paths that tell them apart."""
    paths = list(dict.fromkeys(run.absolute() for run in runs))
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        found = {"/".join(path.parts[-length:]): path for path in paths}
        if len(found) == len(paths):
            return found
    return {str(path): path for path in paths}


def frame(curves: Sequence[Curve]) -> pd.DataFrame:
    """A row a validation: arm, seed, step, trained tokens, seconds, and each figure."""
    import pandas as pd

    rows = [
        {"arm": curve.arm, "seed": curve.seed, **{key: line[key] for key in line if key != "kind"}}
        for curve in curves
        for line in curve.lines
        if line["kind"] == "validation"
    ]
    found = pd.DataFrame(rows, columns=list(dict.fromkeys((*COLUMNS, *(key for row in rows for key in row)))))
    return found.astype({"seed": "Int64"})


def draw(curves: Sequence[Curve]) -> Figure:
    """Loss and validation figures over trained tokens and over seconds, a line a run, a colour an arm."""
    from matplotlib.figure import Figure

    seconds = next((key for key, _ in SCALES[1:] if all(key in line for line in _lines(curves))), "train_s")
    scales = [scale for scale in SCALES if scale[0] in ("n_tokens", seconds)]
    panels = [panel for panel in PANELS if any(line["kind"] == panel[0] for line in _lines(curves))]
    figure = Figure(figsize=(4 * len(panels), 7), layout="constrained")
    axes = figure.subplots(len(scales), len(panels), sharey="col", squeeze=False)
    for row, (scale, scale_label) in zip(axes, scales, strict=True):
        for axis, (kind, name, title) in zip(row, panels, strict=True):
            _draw_panel(axis, curves, kind, (scale, name))
            axis.set(title=title, xlabel=scale_label)
            axis.grid(alpha=0.3)
    figure.legend(*axes[0, -1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw_panel(axis: Any, curves: Sequence[Curve], kind: str, keys: tuple[str, str]) -> None:
    arms = list(dict.fromkeys(curve.arm for curve in curves))
    named: set[str] = set()
    for curve in curves:
        place = arms.index(curve.arm)
        points = [tuple(line.get(key) for key in keys) for line in curve.lines if line["kind"] == kind]
        points = [point for point in points if None not in point]
        if points:
            label = curve.arm if curve.arm not in named else None
            style = "-" if place < 10 else "--"
            axis.plot(*zip(*points, strict=True), style, marker=".", label=label, color=f"C{place % 10}")
            named.add(curve.arm)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as the file's ending says: .png, .svg or .pdf; the same bytes for the same curves."""
    import matplotlib as mpl

    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    kind = path.suffix.removeprefix(".")
    with atomic_path(path) as partial, mpl.rc_context({"svg.hashsalt": "specalign"}):
        figure.savefig(partial, format=kind, dpi=120, metadata=dates.get(kind))
    return path


def _lines(curves: Sequence[Curve]) -> list[Mapping[str, Any]]:
    return [line for curve in curves for line in curve.lines]


def _seed(run: Path) -> int | None:
    """That of the recipe that lies in the run; None where there is none."""
    try:
        seed = tomllib.loads((run / RECIPE).read_text(encoding="utf-8")).get("seed")
    except (OSError, ValueError):
        return None
    return seed if isinstance(seed, int) else None
