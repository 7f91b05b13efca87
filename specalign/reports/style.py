"""How the plots look: readable in print, on a dark page, and without colour vision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from specalign.results import atomic_path

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe & Ito's palette."""
MARKERS = "osD^vPX*"
SETTINGS: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "svg.hashsalt": "specalign",
    "svg.fonttype": "path",
}


def new_figure(width: float, height: float, n_panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of ``width`` x ``height`` inches with panels side by side, that belongs to no window."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, n_panels, sharey=True, squeeze=False)
    return figure, list(panels[0])


def save(figure: Figure, path: Path) -> None:
    """Write ``path``.png and ``path``.svg; the same data give the same bytes."""
    with mpl.rc_context(SETTINGS):
        with atomic_path(path.with_suffix(".png")) as partial:
            figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})
        with atomic_path(path.with_suffix(".svg")) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None})
