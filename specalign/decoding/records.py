"""Rows while they are decoded, and the record that is left of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from specalign.decoding.clock import Clock, Mark
from specalign.decoding.draft_length import Origin
from specalign.decoding.judge import Outcome


@dataclass(frozen=True)
class Step:
    """One target call of one row; counts as in ``specalign.records.StepTrace``, times those of the batch."""

    n_drafted: int
    n_examined: int
    n_accepted: int
    n_emitted: int
    overlap: tuple[float, ...]
    """sum_v min(p, q) at each examined position."""
    draft_s: float
    verify_s: float
    rest_s: float
    margins: tuple[float, ...] = ()
    """Where asked for: largest minus second largest of the target's logits at each emitted position."""
    origin: Origin | None = None
    """Of a hybrid: which part drafted, and its confidence's class at each examined position."""


@dataclass(frozen=True)
class Generation:
    """What :func:`generate` returns; lists have one entry a row."""

    token_ids: list[list[int]]
    """New tokens, a final end-of-sequence token included."""
    finish_reason: list[str]
    """``eos`` or ``length``."""
    steps: list[list[Step]]
    prefill_s: float
    decode_s: float
    wall_s: float


@dataclass
class Growing:
    """One row while it is being decoded."""

    sequence: list[int]
    """What the decoder has read, and the last token, which it has not."""
    n_left: int
    """Tokens that may still be emitted."""
    new: list[int] = field(default_factory=list)
    finish: str = ""
    steps: list[StepMarks] = field(default_factory=list)


@dataclass(frozen=True)
class StepMarks:
    """A step whose times are not read yet."""

    counts: tuple[int, int, int, int]
    overlap: tuple[float, ...]
    margins: tuple[float, ...]
    marks: tuple[Mark, Mark, Mark, Mark]
    origin: Origin | None = None


def emit(row: Growing, outcome: Outcome, eos: frozenset[int]) -> tuple[int, int, int, int]:
    """Append the accepted tokens and the target's own; stop at the end of the sequence. Returns the counts."""
    tokens = [*outcome.drafted[: outcome.n_accepted], outcome.next_token]
    end = next((place for place, token in enumerate(tokens) if token in eos), None)
    if end is not None:
        tokens, row.finish = tokens[: end + 1], "eos"
    row.sequence += tokens
    row.new += tokens
    row.n_left -= len(tokens)
    if not row.finish and row.n_left == 0:
        row.finish = "length"
    n_drafted = len(outcome.drafted)
    n_examined = min(outcome.n_accepted + 1, n_drafted, len(tokens))
    return n_drafted, n_examined, min(outcome.n_accepted, len(tokens)), len(tokens)


def timed(clock: Clock, step: StepMarks) -> Step:
    """The step with its times read."""
    started, drafted, verified, end = step.marks
    return Step(
        *step.counts,
        step.overlap,
        draft_s=clock.seconds(started, drafted),
        verify_s=clock.seconds(drafted, verified),
        rest_s=clock.seconds(verified, end),
        margins=step.margins,
        origin=step.origin,
    )


def merged(parts: list[Generation]) -> Generation:
    """Generations made one after the other, as one batch."""
    return Generation(
        [row for part in parts for row in part.token_ids],
        [row for part in parts for row in part.finish_reason],
        [row for part in parts for row in part.steps],
        prefill_s=sum(part.prefill_s for part in parts),
        decode_s=sum(part.decode_s for part in parts),
        wall_s=sum(part.wall_s for part in parts),
    )
