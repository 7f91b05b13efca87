"""What a run decides: use a drafter or keep the plain target. The report, explain and deploy ask here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from specalign.results import SummaryRow

Standing = Literal["faster", "slower", "not shown to differ"]


@dataclass(frozen=True)
class Decision:
    """Of one temperature."""

    temperature: float
    best: SummaryRow
    """The fastest row of those shown to be faster than the plain target; where none is, the fastest row."""

    @property
    def use(self) -> bool:
        """Whether to use it; else the plain target is to be kept."""
        return standing(self.best) == "faster"


def standing(row: SummaryRow) -> Standing:
    """A row against the plain target, by bounds that hold for all rows of its run at once."""
    joint = row.speedup_joint
    if joint is not None and joint.low is not None and joint.low > 1:
        return "faster"
    if joint is not None and joint.high is not None and joint.high < 1:
        return "slower"
    return "not shown to differ"


def decide(rows: Sequence[SummaryRow], temperature: float) -> Decision | None:
    """The decision among the rows of a temperature; None where none of them has a speed-up."""
    own = [(row.speedup.value, row) for row in rows if row.temperature == temperature and row.speedup]
    if not own:
        return None
    faster = [pair for pair in own if standing(pair[1]) == "faster"]
    return Decision(temperature, max(faster or own, key=lambda pair: pair[0])[1])
