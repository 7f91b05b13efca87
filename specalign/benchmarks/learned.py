"""What a row's compositions learnt in its earlier requests, read off the records: a resumed run knows the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from specalign.benchmarks.cells import Cell
from specalign.decoding import Drafter, Step
from specalign.decoding.draft_length import Origin
from specalign.decoding.hybrid import having_learned
from specalign.records import DraftedBy, GenerationRecord

Row = tuple[str, float, int, int]
"""(Method, temperature, gamma, repeat)."""


class Learned:
    """The compositions as each row's next request meets them: knowing the earlier requests of that row, in order."""

    def __init__(
        self, drafters: Mapping[str, Drafter | None], records: Iterable[GenerationRecord] = ()
    ) -> None:
        self.drafters = drafters
        self.rows: dict[Row, Drafter] = {}
        for record in records:
            self.add(record)

    def add(self, record: GenerationRecord) -> None:
        """Let later requests of the same row know of a good generation."""
        drafter = self.drafters.get(record.method)
        if drafter and record.drafted_by and record.status == "ok":
            row = record.method, record.temperature, record.gamma, record.repeat
            self.rows[row] = having_learned(self.rows.get(row, drafter), [_steps(record)])

    def of(self, cell: Cell) -> Drafter | None:
        """The drafter of this generation."""
        row = cell.method, cell.temperature, cell.gamma, cell.repeat
        return self.rows.get(row, self.drafters[cell.method])


def drafted_by(steps: Sequence[Step]) -> DraftedBy | None:
    """The record of which part drafted; None where no part of a hybrid did."""
    origins = [step.origin for step in steps if step.origin]
    if not origins:
        return None
    return DraftedBy(
        [origin.part for origin in origins],
        [list(origin.classes) for origin in origins],
        [origin.price for origin in origins],
    )


def _steps(record: GenerationRecord) -> list[Step]:
    """What is learnt from, without times."""
    trace, by = record.steps, record.drafted_by
    if trace is None or by is None:
        return []
    origins = [
        Origin(part, tuple(classes), price)
        for part, classes, price in zip(by.part, by.classes, by.price, strict=True)
    ]
    columns = trace.n_drafted, trace.n_examined, trace.n_accepted, trace.n_emitted
    return [
        Step(drafted, examined, accepted, emitted, (), 0.0, 0.0, 0.0, origin=origin)
        for drafted, examined, accepted, emitted, origin in zip(*columns, origins, strict=True)
    ]
