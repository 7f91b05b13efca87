"""The pictures of a report in their order; each is drawn where the run has what it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from matplotlib.figure import Figure

from specalign.analysis.speeds import Speeds
from specalign.reports.plots import plot_break_even, plot_speedup, plot_time
from specalign.reports.plots_acceptance import (
    plot_acceptance,
    plot_histogram,
    plot_survival,
    plot_temperatures,
)
from specalign.reports.plots_model import plot_gamma, plot_iso
from specalign.reports.plots_prompts import plot_prompts
from specalign.results import SummaryRow

Plot = Callable[[Sequence[SummaryRow]], Figure | None]

PLOTS: dict[str, tuple[Plot, str]] = {
    "speedup": (plot_speedup, "Wall-clock speed-up. The dashed line at 1 is the plain target."),
    "break_even": (plot_break_even, "Acceptance rate reached, and the rate at which this machine breaks even."),
    "gamma": (plot_gamma, "Decode speed-up over the draft length: measured (solid) and predicted (dotted)."),
    "iso": (plot_iso, "Drafters between the lines of equal decode speed-up on this machine; bold: break-even."),
    "time": (plot_time, "Where a decoding step's time goes."),
    "acceptance": (plot_acceptance, "Acceptance per draft position, given that the position was reached."),
    "survival": (plot_survival, "Survival: share of drafts accepted up to each position."),
    "accepted": (plot_histogram, "Accepted tokens a step."),
    "temperatures": (
        plot_temperatures,
        "Acceptance at the lowest against the highest temperature; dashed: equal.",
    ),
}
"""File name -> (function of the rows, caption)."""


def figures(rows: Sequence[SummaryRow], speeds: Speeds) -> Iterator[tuple[str, Figure, str]]:
    """(file name, figure, caption) of every plot that has data."""
    drawn = [(name, plot(rows), caption) for name, (plot, caption) in PLOTS.items()]
    drawn.append(("prompts", plot_prompts(rows, speeds), "Speed-up prompt by prompt; the bar is the median."))
    for name, figure, caption in drawn:
        if figure is not None:
            yield name, figure, caption
