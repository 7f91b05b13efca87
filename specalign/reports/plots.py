"""The pictures of a report, each from the rows of the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from specalign.reports.style import COLOURS, MARKERS, new_figure
from specalign.results import Interval, SummaryRow

Labels = dict[str, int]


def plot_speedup(rows: Sequence[SummaryRow]) -> Figure | None:
    """Wall-clock speed-up with its 95 % interval; 1 is the plain target."""
    shown = [row for row in rows if row.speedup is not None]
    if not shown:
        return None
    return _dots(
        shown,
        [[(row.speedup, None) for row in _at(shown, temperature)] for temperature in _temperatures(shown)],
        "wall-clock speed-up over the plain target, with 95 % interval",
        reference=1.0,
    )


def plot_break_even(rows: Sequence[SummaryRow]) -> Figure | None:
    """Acceptance reached (dot, interval) against acceptance needed (bar) to be as fast as the plain target."""
    shown = [row for row in rows if row.alpha_counted is not None]
    if not shown:
        return None
    figure = _dots(
        shown,
        [[(row.alpha_counted, row.break_even_alpha) for row in _at(shown, t)] for t in _temperatures(shown)],
        "acceptance rate: reached (dot, 95 % interval) and needed to break even (grey bar)",
        reference=None,
    )
    for axes in figure.axes:
        axes.set_xlim(0, 1)
    return figure


def plot_acceptance(rows: Sequence[SummaryRow]) -> Figure | None:
    """Acceptance per draft position, given that the position was reached; at each method's longest drafts."""
    drafted = [row for row in rows if any(share is not None for share in row.acceptance_by_position)]
    longest = {(row.method, row.temperature): row for row in sorted(drafted, key=lambda row: row.gamma)}
    shown = [row for row in drafted if longest[row.method, row.temperature] is row]
    if not shown:
        return None
    temperatures = _temperatures(shown)
    figure, panels = new_figure(4.6 * len(temperatures) + 1.2, 3.8, len(temperatures))
    labels = _places(shown)
    for axes, temperature in zip(panels, temperatures, strict=True):
        for row in _at(shown, temperature):
            positions = range(1, len(row.acceptance_by_position) + 1)
            values = [float("nan") if share is None else share for share in row.acceptance_by_position]
            place = labels[_label(row)]
            axes.plot(
                positions,
                values,
                marker=MARKERS[place % 8],
                color=COLOURS[place % 8],
                label=_label(row),
                clip_on=False,
            )
        axes.set(title=f"temperature {temperature:g}", xlabel="draft position (token)", ylim=(0, 1))
        axes.set_xticks(range(1, max(len(row.acceptance_by_position) for row in shown) + 1))
    panels[0].set_ylabel("accepted / examined")
    _legend(figure)
    return figure


def plot_time(rows: Sequence[SummaryRow]) -> Figure | None:
    """Mean milliseconds of a decoding step by kind, and what they come to per emitted token."""
    shown = [row for row in rows if row.n_effective and row.time.verify_ms is not None]
    if not shown:
        return None
    temperatures = _temperatures(shown)
    figure, panels = new_figure(
        4.6 * len(temperatures) + 1.2, 0.9 + 0.42 * len(_places(shown)), len(temperatures)
    )
    places = _places(shown)
    for axes, temperature in zip(panels, temperatures, strict=True):
        for row in _at(shown, temperature):
            left = 0.0
            kinds = (("draft", row.time.draft_ms), ("verify", row.time.verify_ms), ("rest", row.time.rest_ms))
            for colour, (kind, ms) in zip(COLOURS, kinds, strict=False):
                axes.barh(places[_label(row)], ms or 0.0, left=left, color=colour, height=0.7, label=kind)
                left += ms or 0.0
            per_token = f" {row.tau.value if row.tau else 1:.2f} tok/step"
            axes.text(left, places[_label(row)], per_token, va="center", fontsize=8)
        axes.set(title=f"temperature {temperature:g}", xlabel="milliseconds per decoding step")
        axes.margins(x=0.22)
        axes.grid(visible=False, axis="y")
    _name_rows(panels[0], places)
    _legend(figure)
    return figure


def _dots(
    rows: Sequence[SummaryRow],
    values: list[list[tuple[Interval | None, float | None]]],
    label: str,
    reference: float | None,
) -> Figure:
    """A panel a temperature, a line a method: a dot with its interval, and a grey bar at a second value."""
    temperatures, places = _temperatures(rows), _places(rows)
    figure, panels = new_figure(3.9 * len(temperatures) + 0.8, 1.1 + 0.36 * len(places), len(temperatures))
    for axes, temperature, column in zip(panels, temperatures, values, strict=True):
        for row, (interval, mark) in zip(_at(rows, temperature), column, strict=True):
            place = places[_label(row)]
            if mark is not None:
                axes.plot([mark], [place], marker="|", color="#777777", markersize=16, markeredgewidth=3)
            if interval is not None:
                if interval.low is not None and interval.high is not None:
                    axes.plot([interval.low, interval.high], [place, place], color=COLOURS[0], linewidth=2)
                axes.plot([interval.value], [place], marker="o", color=COLOURS[0], clip_on=False)
        if reference is not None:
            axes.axvline(reference, color=COLOURS[1], linestyle="--", linewidth=1.2)
        axes.set_title(f"temperature {temperature:g}")
        axes.grid(visible=False, axis="y")
    limits = [axes.get_xlim() for axes in panels]
    for axes in panels:
        axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    _name_rows(panels[0], places)
    figure.supxlabel(label, fontsize=10)
    return figure


def _legend(figure: Figure) -> None:
    """One legend for all panels, each name once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        found |= dict(zip(names, handles, strict=True))
    figure.legend(list(found.values()), list(found), loc="outside right center", frameon=False)


def _name_rows(axes: object, places: Labels) -> None:
    axes.set_yticks(list(places.values()), list(places))  # type: ignore[attr-defined]
    axes.set_ylim(len(places) - 0.4, -0.6)  # type: ignore[attr-defined]


def _temperatures(rows: Sequence[SummaryRow]) -> list[float]:
    return sorted({row.temperature for row in rows})


def _at(rows: Sequence[SummaryRow], temperature: float) -> list[SummaryRow]:
    return [row for row in rows if row.temperature == temperature]


def _label(row: SummaryRow) -> str:
    return row.method.replace("$", r"\$") + (f" γ={row.gamma}" if row.gamma else "")


def _places(rows: Sequence[SummaryRow]) -> Labels:
    labels = dict.fromkeys(_label(row) for row in rows)
    return {label: place for place, label in enumerate(labels)}


PLOTS = {
    "speedup": (plot_speedup, "Wall-clock speed-up. The dashed line at 1 is the plain target."),
    "break_even": (plot_break_even, "Acceptance rate reached, and the rate at which this machine breaks even."),
    "acceptance": (plot_acceptance, "Acceptance per draft position, given that the position was reached."),
    "time": (plot_time, "Where a decoding step's time goes."),
}
"""File name -> (function of the rows, caption)."""
