"""How fast each method is, what it would need, and where its time goes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from specalign.reports.panels import dots, label_of, legend, name_rows, places_of
from specalign.reports.rows import at, temperatures_of
from specalign.reports.style import COLOURS, hover, new_figure
from specalign.results import SummaryRow


def plot_speedup(rows: Sequence[SummaryRow]) -> Figure | None:
    """Wall-clock speed-up with its 95 % interval; 1 is the plain target."""
    shown = [row for row in rows if row.speedup is not None]
    if not shown:
        return None
    return dots(
        shown,
        [[(row.speedup, None) for row in at(shown, temperature)] for temperature in temperatures_of(shown)],
        "wall-clock speed-up over the plain target, with 95 % interval",
        reference=1.0,
    )


def plot_break_even(rows: Sequence[SummaryRow]) -> Figure | None:
    """Acceptance reached (dot, interval) against acceptance needed (bar) to be as fast as the plain target."""
    shown = [row for row in rows if row.alpha_counted is not None]
    if not shown:
        return None
    figure = dots(
        shown,
        [[(row.alpha_counted, row.break_even_alpha) for row in at(shown, t)] for t in temperatures_of(shown)],
        "acceptance rate: reached (dot, 95 % interval) and needed to break even (grey bar)",
        reference=None,
    )
    for axes in figure.axes:
        axes.set_xlim(0, 1)
    return figure


def plot_time(rows: Sequence[SummaryRow]) -> Figure | None:
    """Mean milliseconds of a decoding step by kind, and what they come to per emitted token."""
    shown = [row for row in rows if row.n_effective and row.time.verify_ms is not None]
    if not shown:
        return None
    temperatures = temperatures_of(shown)
    figure, panels = new_figure(
        4.6 * len(temperatures) + 1.2, 0.9 + 0.42 * len(places_of(shown)), len(temperatures)
    )
    places = places_of(shown)
    for axes, temperature in zip(panels, temperatures, strict=True):
        for row in at(shown, temperature):
            left = 0.0
            kinds = (("draft", row.time.draft_ms), ("verify", row.time.verify_ms), ("rest", row.time.rest_ms))
            for colour, (kind, ms) in zip(COLOURS, kinds, strict=False):
                width_ms = ms or 0.0
                (bar,) = axes.barh(
                    places[label_of(row)], width_ms, left=left, color=colour, height=0.7, label=kind
                )
                bar.set(**hover(f"{label_of(row)}, {kind}: {width_ms:.1f} ms"))
                left += width_ms
            per_token = f" {row.tau.value if row.tau else 1:.2f} tok/step"
            axes.text(left, places[label_of(row)], per_token, va="center", fontsize=8)
        axes.set(title=f"temperature {temperature:g}", xlabel="milliseconds per decoding step")
        axes.margins(x=0.22)
        axes.grid(visible=False, axis="y")
    name_rows(panels[0], places)
    legend(figure)
    return figure
