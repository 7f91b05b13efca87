"""How the plots look: readable in print, on a dark page, and without colour vision."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from specalign.files import atomic_path, write_text
from specalign.text import plain

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
    "svg.fonttype": "path",
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


def save(figure: Figure, path: Path) -> str:
    """Write ``path``.png and ``path``.svg, the same bytes for the same data; returns the SVG's text."""
    with mpl.rc_context(SETTINGS):
        with atomic_path(path.with_suffix(".png")) as partial:
            figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = re.sub(rf'<g id="{HOVER}([^"]*)">', r"<g><title>\1</title>", plain(drawn.getvalue()))
    write_text(path.with_suffix(".svg"), text)
    return text
