"""The command that draws training curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specalign.curves import curves_of, draw, labels, save


def plot_runs(runs: Sequence[Path]) -> Path:
    """Draw loss and validation metrics over trained tokens and over seconds, one line a run, into the first run."""
    return save(draw(curves_of(labels(runs))), runs[0] / "train.png")
