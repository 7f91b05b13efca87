"""A run's generations in parts: by turn, by the length of the context, inside and outside of thinking."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from specalign.analysis.speeds import Group, Speeds, group_of
from specalign.errors import UserError
from specalign.metrics.statistics import ratio_interval
from specalign.records import GenerationRecord
from specalign.results import ALONE, TARGET, BenchmarkResult, Interval
from specalign.run_files import RECORDS_FILE, read_records

SPREAD = 8
"""The longest context must be so many times the shortest for a run without later turns to be shown by context."""
INSIDE, OUTSIDE = "thinking", "answer"


@dataclass
class Counts:
    """What the steps of one prompt's generations came to, its repeats and turns together."""

    n_steps: int = 0
    n_emitted: int = 0
    n_examined: int = 0
    n_accepted: int = 0
    seconds: float = 0.0


@dataclass
class Part:
    """The part of a run's generations that has a name."""

    counts: dict[Group, dict[str, Counts]] = field(default_factory=lambda: defaultdict(dict))
    """By prompt."""
    speeds: Speeds = field(default_factory=Speeds)

    @property
    def n_prompts(self) -> int:
        """Prompts of which the plain target has tokens here."""
        return len(
            {name for group, own in self.speeds.generations.items() if group[0] == TARGET for name, _ in own}
        )

    def alpha(self, group: Group) -> Interval | None:
        """Accepted over examined drafted tokens, with its interval over prompts."""
        return self._ratio(group, lambda own: own.n_accepted, lambda own: own.n_examined, share=True)

    def tau(self, group: Group) -> Interval | None:
        """Tokens per target call."""
        return self._ratio(group, lambda own: own.n_emitted, lambda own: own.n_steps)

    def _ratio(
        self,
        group: Group,
        above: Callable[[Counts], int],
        below: Callable[[Counts], int],
        *,
        share: bool = False,
    ) -> Interval | None:
        own = self.counts[group].values()
        return ratio_interval([above(each) for each in own], [below(each) for each in own], share=share)


@dataclass(frozen=True)
class Parts:
    """The parts that a run has; empty where there is but one of a kind, or none."""

    turns: Mapping[int, Part]
    """0-based turn -> its whole generations."""
    contexts: Mapping[int, Part]
    """Power of two -> the steps at contexts of that length or more, and less than twice as much."""
    thinking: Mapping[str, Part]
    """INSIDE and OUTSIDE: the steps before and after the token that ends the thinking."""


NO_PARTS = Parts({}, {}, {})


def parts_of(records: Iterable[GenerationRecord], thinking: Mapping[str, Any] | None = None) -> Parts:
    """Good generations in parts; seconds of steps are those of decoding. ``thinking`` is the provenance's."""
    turns: dict[int, Part] = defaultdict(Part)
    contexts: dict[int, Part] = defaultdict(Part)
    phases: dict[str, Part] = defaultdict(Part)
    shortest, longest = float("inf"), 0
    for record in records:
        if record.rule == ALONE or record.status != "ok":
            continue
        _add_whole(turns[record.turn], record)
        if record.steps is None:
            continue
        shortest = min(shortest, record.n_prompt_tokens)
        longest = max(longest, record.n_prompt_tokens + len(record.token_ids))
        _add_steps(contexts, record, partial(_context, record))
        if thinking:
            _add_steps(phases, record, partial(_phase, _end_of_thinking(record, thinking)))
    wide = len(contexts) > 1 and (len(turns) > 1 or longest >= SPREAD * shortest)
    return Parts(
        {turn: turns[turn] for turn in sorted(turns)} if len(turns) > 1 else {},
        {least: contexts[least] for least in sorted(contexts)} if wide else {},
        {name: phases[name] for name in (INSIDE, OUTSIDE)} if len(phases) > 1 else {},
    )


def read_parts(run: Path, result: BenchmarkResult) -> Parts:
    """Of records.jsonl, as far as it can be read."""
    return parts_of(_readable(run), result.provenance.get("thinking"))


def _readable(run: Path) -> Iterator[GenerationRecord]:
    with suppress(UserError):  # the report says why, of the speeds
        yield from read_records(run / RECORDS_FILE)


def _context(record: GenerationRecord, place: int) -> int:
    """The largest power of two within the tokens before that place of the output."""
    return 1 << ((record.n_prompt_tokens + place).bit_length() - 1)


def _phase(end: int, place: int) -> str:
    return INSIDE if place < end else OUTSIDE


def _end_of_thinking(record: GenerationRecord, thinking: Mapping[str, Any]) -> int:
    """Tokens of the output up to and with the one that ends the thinking; 0 where it did not think."""
    ids = record.token_ids
    if thinking["end"] in ids:
        return ids.index(thinking["end"]) + 1
    return len(ids) if thinking["opened"] or thinking["begin"] in ids else 0


def _add_whole(part: Part, record: GenerationRecord) -> None:
    part.speeds.add(record)
    if record.steps:
        counts = part.counts[group_of(record)].setdefault(record.prompt_id, Counts())
        for _, step in _steps(record):
            _count(counts, step)


def _add_steps(parts: Mapping[Any, Part], record: GenerationRecord, name: Callable[[int], Any]) -> None:
    """Each step of a generation to the part of the place in the output where it began."""
    group, sums = group_of(record), dict[Any, Counts]()
    for place, step in _steps(record):
        _count(sums.setdefault(name(place), Counts()), step)
    for which, found in sums.items():
        counts = parts[which].counts[group].setdefault(record.prompt_id, Counts())
        _count(counts, found)
        key = record.prompt_id, record.repeat
        if record.adaptive:
            parts[which].speeds.adaptive.add(group)
        parts[which].speeds.count(group, key, 0.0, found.seconds, found.n_emitted)


def _steps(record: GenerationRecord) -> Iterator[tuple[int, Counts]]:
    """(Tokens before it, what it came to) of each step."""
    steps, place = record.steps, 0
    assert steps is not None
    columns = steps.n_emitted, steps.n_examined, steps.n_accepted, steps.draft_s, steps.verify_s, steps.rest_s
    for emitted, examined, accepted, *seconds in zip(*columns, strict=True):
        yield place, Counts(1, emitted, examined, accepted, sum(seconds))
        place += emitted


def _count(total: Counts, more: Counts) -> None:
    total.n_steps += more.n_steps
    total.n_emitted += more.n_emitted
    total.n_examined += more.n_examined
    total.n_accepted += more.n_accepted
    total.seconds += more.seconds
