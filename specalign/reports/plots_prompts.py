"""Prompt by prompt: how much faster or slower than the plain target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from specalign.analysis.speeds import Speeds, group_of
from specalign.reports.panels import label_of, name_rows, places_of
from specalign.reports.rows import at, temperatures_of
from specalign.reports.style import COLOURS, hover, new_figure
from specalign.results import SummaryRow

MANY = 300
"""Points above which a row is drawn as an image and hover names the row only."""


def plot_prompts(rows: Sequence[SummaryRow], speeds: Speeds) -> Figure | None:
    """A dot a prompt: its speed-up at the plain target's length; the bar is their median."""
    ratios = {group_of(row): _ratios(row, speeds) for row in rows if row.kind != "target"}
    shown = [row for row in rows if ratios.get(group_of(row))]
    if not shown:
        return None
    temperatures, places = temperatures_of(shown), places_of(shown)
    figure, panels = new_figure(3.9 * len(temperatures) + 0.8, 1.1 + 0.4 * len(places), len(temperatures))
    for axes, temperature in zip(panels, temperatures, strict=True):
        for row in at(shown, temperature):
            values, place = ratios[group_of(row)], places[label_of(row)]
            spread = place + 0.25 * np.linspace(-1, 1, len(values))
            text = f"{label_of(row)}: median {_times(float(np.median(values)))} of {len(values)} prompts"
            axes.plot(
                values, spread, ".", color=COLOURS[0], alpha=0.6, rasterized=len(values) > MANY, **hover(text)
            )
            axes.plot([np.median(values)] * 2, [place - 0.38, place + 0.38], color="#000000", linewidth=2)
        axes.axvline(0, color=COLOURS[1], linestyle="--", linewidth=1.2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _times(value)))
        axes.set_title(f"temperature {temperature:g}")
        axes.grid(visible=False, axis="y")
    name_rows(panels[0], places)
    figure.supxlabel("speed-up of one prompt over the plain target (a dot a prompt, logarithmic)", fontsize=10)
    return figure


def _ratios(row: SummaryRow, speeds: Speeds) -> list[float]:
    """log2 of every prompt's speed-up, ascending."""
    logs = speeds.log_ratios(group_of(row))
    return sorted(value / math.log(2) for value in logs.values())


def _times(log2: float) -> str:
    return f"{2**log2:.2f}x"
