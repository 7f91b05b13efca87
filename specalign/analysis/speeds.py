"""Seconds and tokens of every generation of a run, and speeds estimated from them, paired by prompt."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from specalign.errors import UserError
from specalign.metrics.statistics import Array, Estimate, Times, log_ratio
from specalign.records import GenerationRecord
from specalign.results import ALONE, TARGET, SummaryRow
from specalign.run_files import RECORDS_FILE, read_records

Group = tuple[str, float, int]
"""(method, temperature, gamma)."""
Key = tuple[str, int]
"""(prompt, repeat)."""
Figure = str
"""What is compared of two methods: "common" (seconds per token at the plain target's lengths), "whole" or "decode"."""


@dataclass
class Speeds:
    """What the records say of each generation."""

    generations: dict[Group, dict[Key, tuple[float, float, int]]] = field(default_factory=dict)
    """(seconds outside decoding, decode seconds, tokens), of all turns of a conversation; good ones only."""
    n_turns: dict[Group, Counter[Key]] = field(default_factory=lambda: defaultdict(Counter))
    """Turns that these are: conversations are compared where both have as many."""
    categories: dict[str, str] = field(default_factory=dict)
    """Prompt -> category."""
    failures: dict[Group, list[str]] = field(default_factory=dict)
    """Reasons of the generations that failed."""
    adaptive: set[Group] = field(default_factory=set)
    unreadable: str = ""
    """Why reading stopped before the end; empty where it did not."""

    def add(self, record: GenerationRecord) -> None:
        """Count one generation in; those of a drafter on its own are none of the comparison's."""
        group = group_of(record)
        if record.rule == ALONE:
            return
        if record.status == "failed":
            self.failures.setdefault(group, []).append(record.error)
            return
        outside = max(0.0, record.wall_s - record.decode_s)
        key = record.prompt_id, record.repeat
        self.count(group, key, outside, record.decode_s, len(record.token_ids))
        self.categories[record.prompt_id] = record.category
        if record.adaptive:
            self.adaptive.add(group)

    def count(self, group: Group, key: Key, outside_s: float, decode_s: float, n_tokens: int) -> None:
        """Add a turn's seconds and tokens to those of its conversation."""
        own = self.generations.setdefault(group, {})
        before = own.get(key, (0.0, 0.0, 0))
        own[key] = before[0] + outside_s, before[1] + decode_s, before[2] + n_tokens
        self.n_turns[group][key] += 1

    @property
    def drafted(self) -> list[Group]:
        """Every group but the plain target, in order of first appearance."""
        return [group for group in self.generations if group[0] != TARGET]

    @property
    def temperatures(self) -> list[float]:
        """Ascending."""
        return sorted({temperature for _, temperature, _ in self.generations})

    def prompts(self, *groups: Group) -> list[str]:
        """Prompts of the generations that all of these have, in the order of an estimate's entries."""
        return sorted({prompt for prompt, _ in self._shared(groups)})

    def speedup(
        self, ours: Group, *, figure: Figure = "common", prompts: Collection[str] | None = None
    ) -> Estimate | None:
        """log(plain seconds per token / ours) over the generations that both have, an entry a prompt."""
        return self.ratio(plain_of(ours), ours, figure=figure, prompts=prompts)

    def ratio(
        self,
        one: Group,
        other: Group,
        *,
        figure: Figure = "common",
        prompts: Collection[str] | None = None,
    ) -> Estimate | None:
        """log(seconds per token of one / of the other), over the generations that both and the plain target have."""
        if figure == "common":
            return log_ratio(*self.seconds(one, other, prompts=prompts))
        keys = self._common(one, other, prompts)
        times = (self._times(group, keys) for group in (one, other))
        first, second = (own.whole if figure == "whole" else own.decoding for own in times)
        return first - second if first and second else None

    def seconds(
        self, one: Group, other: Group, *, prompts: Collection[str] | None = None
    ) -> tuple[Array, Array]:
        """Seconds of each at the plain target's lengths, an entry a prompt."""
        keys = self._common(one, other, prompts)
        lengths = self._times(plain_of(one), keys).n_tokens
        first, second = (self._times(group, keys).seconds_at(lengths) for group in (one, other))
        return first, second

    def log_ratios(self, ours: Group) -> dict[str, float]:
        """Prompt -> log(plain seconds per token / ours) at the plain target's length: above 0 where ours is faster."""
        return {
            prompt: found.log
            for prompt in self.prompts(ours, plain_of(ours))
            if (found := self.speedup(ours, prompts={prompt}))
        }

    def cells(self, group: Group) -> dict[str, tuple[float, float]]:
        """Prompt -> (the plain target's tokens, seconds at its lengths), over the generations that both have."""
        keys = self._shared((group, plain_of(group)))
        lengths = self._times(plain_of(group), keys).n_tokens
        seconds = self._times(group, keys).seconds_at(lengths)
        columns = zip(lengths.tolist(), seconds.tolist(), strict=True)
        return dict(zip(sorted({prompt for prompt, _ in keys}), columns, strict=True))

    def halves(self, group: Group) -> tuple[list[str], Array, Array] | None:
        """Prompts, and seconds of odd and of even repeats, both at the plain target's lengths in all repeats."""
        plain = plain_of(group)
        keys = self._shared((group, plain))
        parts = [{key for key in keys if key[1] % 2 == half} for half in (1, 0)]
        shared = {prompt for prompt, _ in parts[0]} & {prompt for prompt, _ in parts[1]}
        kept = [[key for key in part if key[0] in shared] for part in parts]
        if not shared:
            return None
        lengths = self._times(plain, [*kept[0], *kept[1]]).n_tokens
        shares = [len(own) / (len(kept[0]) + len(kept[1])) for own in kept]
        odd, even = (
            self._times(group, own).seconds_at(lengths * share) / share
            for own, share in zip(kept, shares, strict=True)
        )
        return sorted(shared), odd, even

    def _common(self, one: Group, other: Group, prompts: Collection[str] | None) -> list[Key]:
        keys = self._shared((one, other, plain_of(one)))
        return keys if prompts is None else [key for key in keys if key[0] in prompts]

    def _shared(self, groups: Sequence[Group]) -> list[Key]:
        tables = [self.generations.get(group, {}) for group in groups]
        turns = [self.n_turns[group] for group in groups]
        return [
            key
            for key in tables[0]
            if all(key in table for table in tables[1:]) and len({counts[key] for counts in turns}) == 1
        ]

    def _times(self, group: Group, keys: Iterable[Key]) -> Times:
        total: dict[str, list[float]] = {}
        for key in sorted(keys):
            own = total.setdefault(key[0], [0.0, 0.0, 0.0])
            for place, value in enumerate(self.generations[group][key]):
                own[place] += value
        columns = np.array(list(total.values()), dtype=float).reshape(-1, 3).T
        return Times(*columns)


def group_of(row: SummaryRow | GenerationRecord) -> Group:
    """The group that a row sums up, or that a record is of."""
    return row.method, row.temperature, row.gamma


def plain_of(group: Group) -> Group:
    """The plain target at the same temperature."""
    return TARGET, group[1], 0


def speeds_of(records: Iterable[GenerationRecord]) -> Speeds:
    """Of records in memory."""
    speeds = Speeds()
    for record in records:
        speeds.add(record)
    return speeds


def read_speeds(run: Path) -> Speeds:
    """Read records.jsonl a line at a time, as far as it can be read."""
    speeds = Speeds()
    try:
        for record in read_records(run / RECORDS_FILE):
            speeds.add(record)
    except UserError as error:
        speeds.unreadable = str(error).replace(f"{run}/", "")
    return speeds
