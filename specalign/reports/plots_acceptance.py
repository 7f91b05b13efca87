"""Which drafts are accepted: by position, by count, and between temperatures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specalign.reports.panels import (
    label_of,
    legend,
    longest_drafts,
    look_of,
    methods_of,
    places_of,
    plain_text,
)
from specalign.reports.rows import at, temperatures_of
from specalign.reports.style import hover, new_figure
from specalign.reports.tables import interval
from specalign.results import Interval, SummaryRow

Shares = Callable[[SummaryRow], Sequence[float | None]]


def plot_acceptance(rows: Sequence[SummaryRow]) -> Figure | None:
    """Accepted over examined at each draft position; at each method's longest drafts."""
    return _by_position(rows, lambda row: row.acceptance_by_position, "accepted / examined at the position")


def plot_survival(rows: Sequence[SummaryRow]) -> Figure | None:
    """Share of drafts accepted up to each position; the area under it is the tokens that drafting adds to a step."""
    return _by_position(rows, lambda row: row.survival_by_position, "drafts accepted up to the position")


def plot_histogram(rows: Sequence[SummaryRow]) -> Figure | None:
    """Share of decoding steps by the number of drafted tokens that they accepted."""
    shown = longest_drafts(row for row in rows if sum(row.accepted_histogram))
    if not shown:
        return None
    temperatures, places = temperatures_of(shown), places_of(shown)
    figure, panels = new_figure(4.6 * len(temperatures) + 1.2, 3.8, len(temperatures))
    width = 0.84 / len(places)
    for axes, temperature in zip(panels, temperatures, strict=True):
        for row in at(shown, temperature):
            place = places[label_of(row)]
            shares = np.array(row.accepted_histogram) / sum(row.accepted_histogram)
            left = np.arange(len(shares)) + (place - (len(places) - 1) / 2) * width
            bars = axes.bar(left, shares, width, color=look_of(place)["color"], label=label_of(row))
            for n_accepted, bar in enumerate(bars):
                bar.set(**hover(f"{label_of(row)}: {n_accepted} accepted in {shares[n_accepted]:.0%} of steps"))
        axes.set(title=f"temperature {temperature:g}", xlabel="drafted tokens accepted in a step (tokens)")
        axes.set_xticks(range(max(len(row.accepted_histogram) for row in shown)))
        axes.grid(visible=False, axis="x")
    panels[0].set_ylabel("share of decoding steps")
    legend(figure)
    return figure


def plot_temperatures(rows: Sequence[SummaryRow]) -> Figure | None:
    """α at the lowest temperature against α at the highest, a point a method, with both intervals."""
    temperatures = temperatures_of(rows)
    if len(temperatures) < 2:
        return None
    cold, hot = (
        {row.method: row for row in longest_drafts(at(rows, t))} for t in (temperatures[0], temperatures[-1])
    )
    places = methods_of([row for row in rows if row.alpha_counted])
    figure, (axes,) = new_figure(5.8, 3.9)
    n_shown = 0
    for method, place in places.items():
        pair = [side[method].alpha_counted if method in side else None for side in (cold, hot)]
        if pair[0] is None or pair[1] is None:
            continue
        _cross(axes, pair[0], pair[1], plain_text(method), place)
        n_shown += 1
    if not n_shown:
        return None
    axes.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel(f"α counted at temperature {temperatures[0]:g} (share of examined drafts)")
    axes.set_ylabel(f"α counted at temperature {temperatures[-1]:g}")
    legend(figure)
    return figure


def _cross(axes: Axes, x: Interval, y: Interval, name: str, place: int) -> None:
    look = look_of(place)
    if x.low is not None and x.high is not None:
        axes.plot([x.low, x.high], [y.value] * 2, color=look["color"], linewidth=1, alpha=0.6)
    if y.low is not None and y.high is not None:
        axes.plot([x.value] * 2, [y.low, y.high], color=look["color"], linewidth=1, alpha=0.6)
    shown = hover(f"{name}: {interval(x)} against {interval(y)}")
    axes.plot([x.value], [y.value], linestyle="", label=name, clip_on=False, **look, **shown)


def _by_position(rows: Sequence[SummaryRow], shares: Shares, label: str) -> Figure | None:
    shown = longest_drafts(row for row in rows if any(share is not None for share in shares(row)))
    if not shown:
        return None
    temperatures, places = temperatures_of(shown), places_of(shown)
    figure, panels = new_figure(4.6 * len(temperatures) + 1.2, 3.8, len(temperatures))
    for axes, temperature in zip(panels, temperatures, strict=True):
        for row in at(shown, temperature):
            values = [math.nan if share is None else share for share in shares(row)]
            text = ", ".join("–" if math.isnan(value) else f"{value:.2f}" for value in values)
            axes.plot(
                range(1, len(values) + 1),
                values,
                label=label_of(row),
                clip_on=False,
                **look_of(places[label_of(row)]),
                **hover(f"{label_of(row)}: {text}"),
            )
        axes.set(title=f"temperature {temperature:g}", xlabel="draft position (token)", ylim=(0, 1))
        axes.set_xticks(range(1, max(len(shares(row)) for row in shown) + 1))
    panels[0].set_ylabel(label)
    legend(figure)
    return figure
