"""Measured speed against the cost model: over draft lengths, and over acceptance and cost on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specalign.reports.panels import label_of, legend, look_of, methods_of, plain_text
from specalign.reports.rows import at, temperatures_of
from specalign.reports.style import hover, new_figure
from specalign.reports.tables import interval
from specalign.results import SummaryRow

LEVELS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)


def plot_gamma(rows: Sequence[SummaryRow]) -> Figure | None:
    """Decode speed-up over γ, measured (solid, 95 % interval) and predicted (dotted); from two draft lengths on."""
    shown = [row for row in rows if row.decode_speedup is not None]
    if len({row.gamma for row in shown}) < 2:
        return None
    temperatures, places = temperatures_of(shown), methods_of(shown)
    figure, panels = new_figure(4.6 * len(temperatures) + 1.2, 3.8, len(temperatures))
    for axes, temperature in zip(panels, temperatures, strict=True):
        for method, place in places.items():
            own = sorted(
                (row for row in at(shown, temperature) if row.method == method), key=lambda row: row.gamma
            )
            _gamma_line(axes, own, place)
        axes.axhline(1, color="#777777", linestyle="--", linewidth=1.2, label="break-even")
        axes.set(title=f"temperature {temperature:g}", xlabel="draft length γ (tokens)")
        axes.set_xticks(sorted({row.gamma for row in shown}))
    panels[0].set_ylabel("decode speed-up over the plain target")
    panels[0].set_ylim(bottom=0)
    legend(figure)
    return figure


def _gamma_line(axes: Axes, rows: Sequence[SummaryRow], place: int) -> None:
    look = look_of(place)
    for row in rows:
        measured = row.decode_speedup
        if measured is not None and measured.low is not None and measured.high is not None:
            axes.plot([row.gamma] * 2, [measured.low, measured.high], color=look["color"], linewidth=1.2)
    pairs = [(row.gamma, row.decode_speedup) for row in rows if row.decode_speedup is not None]
    if not pairs:
        return
    name = plain_text(rows[0].method)
    text = ", ".join(f"γ={gamma} {interval(value, unit='x')}" for gamma, value in pairs)
    x, y = [gamma for gamma, _ in pairs], [value.value for _, value in pairs]
    axes.plot(x, y, label=name, **look, **hover(f"{name}: {text}"))
    predicted = [(row.gamma, row.predicted_speedup) for row in rows if row.predicted_speedup is not None]
    if predicted:
        axes.plot(*zip(*predicted, strict=True), color=look["color"], linestyle=":", linewidth=1.4)


def plot_iso(rows: Sequence[SummaryRow]) -> Figure | None:
    """Acceptance and drafting cost of each drafter among the lines of equal decode speed-up on this machine.

    Lines: (1 + α + ... + α^γ) / (γ c + v), v being the median measured T_target(γ + 1) / T_target(1) of the
    draft length that most rows have; overhead is left out.
    """
    usable = [row for row in rows if row.alpha_counted and row.c is not None and row.verify_ratio is not None]
    if not usable:
        return None
    gammas = [row.gamma for row in usable]
    gamma = max(sorted(set(gammas)), key=gammas.count)
    shown = [row for row in usable if row.gamma == gamma]
    verify = median(row.verify_ratio for row in shown if row.verify_ratio is not None)
    temperatures, places = temperatures_of(shown), methods_of(shown)
    figure, panels = new_figure(4.6 * len(temperatures) + 1.2, 4.2, len(temperatures))
    for axes, temperature in zip(panels, temperatures, strict=True):
        _iso_lines(axes, gamma, verify, top=max(0.1, 1.6 * max(row.c or 0.0 for row in shown)))
        for row in at(shown, temperature):
            _iso_point(axes, row, places[row.method])
        axes.set(
            title=f"temperature {temperature:g}, γ = {gamma}", xlabel="α counted (share of examined drafts)"
        )
        axes.set_xlim(0, 1)
        axes.grid(visible=False)
    panels[0].set_ylabel("c (draft call / target call)")
    legend(figure)
    return figure


def _iso_lines(axes: Axes, gamma: int, verify: float, top: float) -> None:
    alpha, c = np.meshgrid(np.linspace(0, 1, 101), np.linspace(0, top, 61))
    tokens = np.sum([alpha**i for i in range(gamma + 1)], axis=0)
    speed = tokens / (gamma * c + verify)
    lines = axes.contour(alpha, c, speed, levels=LEVELS, colors="#888888", linewidths=1)
    axes.contour(alpha, c, speed, levels=[1.0], colors="#000000", linewidths=2)
    axes.clabel(lines, fmt="%gx", fontsize=8)


def _iso_point(axes: Axes, row: SummaryRow, place: int) -> None:
    if row.alpha_counted is None or row.c is None:
        return
    alpha, look = row.alpha_counted, look_of(place)
    if alpha.low is not None and alpha.high is not None:
        axes.plot([alpha.low, alpha.high], [row.c] * 2, color=look["color"], linewidth=1.2)
    measured = interval(row.decode_speedup, unit="x")
    shown = hover(f"{label_of(row)}: α {interval(alpha)}, c {row.c:.2f}, measured {measured}")
    name = plain_text(row.method)
    axes.plot([alpha.value], [row.c], linestyle="", label=name, clip_on=False, **look, **shown)
