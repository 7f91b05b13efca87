"""How the plots look: readable in print, on a dark page, and without colour vision."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from specalign.files import atomic_path

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe & Ito's palette."""
MARKERS = "osD^vPX*"
HOVER = "hover: "
SETTINGS: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "svg.hashsalt": "specalign",
}


def new_figure(width: float, height: float, n_panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of ``width`` x ``height`` inches with panels side by side, that belongs to no window."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, n_panels, sharey=True, squeeze=False)
    return figure, list(panels[0])


def hover(text: str) -> dict[str, Any]:
    """Keywords of an artist whose ``text`` shows when a pointer rests on it in the SVG."""
    return {"gid": f"{HOVER}{text}"}


def save_png(figure: Figure, path: Path) -> None:
    """Write a PNG of 64 colours, a third as large as with all of them; the same bytes for the same data."""
    drawn = io.BytesIO()
    with mpl.rc_context(SETTINGS):
        figure.savefig(drawn, format="png", dpi=110)
    few = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    with atomic_path(path) as partial:
        few.save(partial, format="PNG", optimize=True)
