"""Parts that several plots share: a panel a temperature, rows and legends by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specalign.reports.rows import at, temperatures_of
from specalign.reports.style import COLOURS, MARKERS, hover, new_figure
from specalign.reports.tables import interval as interval_text
from specalign.results import Interval, SummaryRow
from specalign.text import plain

LONGEST = 28
"""Characters of a name in a plot."""


def dots(
    rows: Sequence[SummaryRow],
    values: list[list[tuple[Interval | None, float | None]]],
    label: str,
    reference: float | None,
) -> Figure:
    """A panel a temperature, a line a method: a dot with its interval, and a grey bar at a second value."""
    temperatures, places = temperatures_of(rows), places_of(rows)
    figure, panels = new_figure(3.9 * len(temperatures) + 0.8, 1.1 + 0.36 * len(places), len(temperatures))
    for axes, temperature, column in zip(panels, temperatures, values, strict=True):
        for row, (interval, mark) in zip(at(rows, temperature), column, strict=True):
            place = places[label_of(row)]
            if mark is not None:
                axes.plot([mark], [place], marker="|", color="#777777", markersize=16, markeredgewidth=3)
            if interval is not None:
                if interval.low is not None and interval.high is not None:
                    axes.plot([interval.low, interval.high], [place, place], color=COLOURS[0], linewidth=2)
                shown = hover(f"{label_of(row)}: {interval_text(interval)}")
                axes.plot([interval.value], [place], marker="o", color=COLOURS[0], clip_on=False, **shown)
        if reference is not None:
            axes.axvline(reference, color=COLOURS[1], linestyle="--", linewidth=1.2)
        axes.set_title(f"temperature {temperature:g}")
        axes.grid(visible=False, axis="y")
    limits = [axes.get_xlim() for axes in panels]
    for axes in panels:
        axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    name_rows(panels[0], places)
    figure.supxlabel(label, fontsize=10)
    return figure


def legend(figure: Figure) -> None:
    """One legend for all panels, each name once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        found |= dict(zip(names, handles, strict=True))
    figure.legend(list(found.values()), list(found), loc="outside right center", frameon=False)


def name_rows(axes: Axes, places: Mapping[str, int]) -> None:
    """The labels along the y axis, the first on top."""
    axes.set_yticks(list(places.values()), list(places))
    axes.set_ylim(len(places) - 0.4, -0.6)


def label_of(row: SummaryRow) -> str:
    """Method and draft length, safe from matplotlib's mathematics."""
    return plain_text(row.method) + (f" γ{'≤' if row.adaptive else '='}{row.gamma}" if row.gamma else "")


def places_of(rows: Sequence[SummaryRow]) -> dict[str, int]:
    """Label -> its place, in order of first appearance."""
    labels = dict.fromkeys(label_of(row) for row in rows)
    return {label: place for place, label in enumerate(labels)}


def longest_drafts(rows: Iterable[SummaryRow]) -> list[SummaryRow]:
    """Of each method and temperature the row of the longest drafts."""
    drafted = list(rows)
    longest = {(row.method, row.temperature): row for row in sorted(drafted, key=lambda row: row.gamma)}
    return [row for row in drafted if longest[row.method, row.temperature] is row]


def look_of(place: int) -> dict[str, Any]:
    """Colour and marker of the place-th name, together distinct for more names than there are colours."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def methods_of(rows: Sequence[SummaryRow]) -> dict[str, int]:
    """Method -> its place, in order of first appearance."""
    return {method: place for place, method in enumerate(dict.fromkeys(row.method for row in rows))}


def plain_text(text: str) -> str:
    """``text`` in one line, its middle left out where it is long, without a meaning for matplotlib's mathematics."""
    flat = " ".join(plain(text).split())
    if len(flat) > LONGEST:
        flat = f"{flat[: LONGEST // 2]}…{flat[-LONGEST // 2 + 1 :]}"
    return flat.replace("$", r"\$")
