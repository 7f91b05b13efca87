"""Seconds and tokens of every prompt, read from records.jsonl a line at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from specalign.errors import UserError
from specalign.metrics.comparisons import holm, minimum_detectable_difference, paired_p_value
from specalign.metrics.statistics import ratio_of_ratios_interval
from specalign.reports.rows import full_name
from specalign.results import RECORDS_FILE, GenerationRecord, Interval, SummaryRow, read_records

SIGNIFICANT = 0.05
Group = tuple[str, float, int]
"""(method, temperature, gamma)."""


@dataclass
class Speeds:
    """What the records say of each prompt."""

    seconds: dict[Group, dict[str, float]] = field(default_factory=dict)
    """Wall seconds of each prompt's calls, repeats together."""
    tokens: dict[Group, dict[str, int]] = field(default_factory=dict)
    categories: dict[str, str] = field(default_factory=dict)
    """Prompt -> category."""
    failures: dict[Group, list[str]] = field(default_factory=dict)
    """Reasons of the generations that failed."""
    unreadable: str = ""
    """Why reading stopped before the end; empty where it did not."""

    def add(self, record: GenerationRecord) -> None:
        """Count one generation in."""
        group = record.method, record.temperature, record.gamma
        if record.status == "failed":
            self.failures.setdefault(group, []).append(record.error)
            return
        seconds, tokens = self.seconds.setdefault(group, {}), self.tokens.setdefault(group, {})
        seconds[record.prompt_id] = seconds.get(record.prompt_id, 0.0) + record.wall_s
        tokens[record.prompt_id] = tokens.get(record.prompt_id, 0) + len(record.token_ids)
        self.categories[record.prompt_id] = record.category

    def shared(self, ours: Group, theirs: Group) -> list[str]:
        """Prompts that both decoded to at least a token."""
        mine, others = self.tokens.get(ours, {}), self.tokens.get(theirs, {})
        return [prompt for prompt, n in mine.items() if n and others.get(prompt)]

    def log_ratios(self, ours: Group, theirs: Group) -> dict[str, float]:
        """Prompt -> log(their seconds per token / ours): above 0 where ours is faster."""
        return {
            prompt: math.log(self._pace(theirs, prompt) / self._pace(ours, prompt))
            for prompt in self.shared(ours, theirs)
        }

    def speedup(self, ours: Group, plain: Group, prompts: Iterable[str]) -> Interval | None:
        """Plain seconds per token over ours on some prompts, with its 95 % interval over them."""
        names = list(prompts)
        columns = [
            [table.get(group, {})[name] for name in names]
            for group in (plain, ours)
            for table in (self.seconds, self.tokens)
        ]
        return ratio_of_ratios_interval((columns[0], columns[1]), (columns[2], columns[3]))

    def _pace(self, group: Group, prompt: str) -> float:
        return self.seconds[group][prompt] / self.tokens[group][prompt]


def group_of(row: SummaryRow) -> Group:
    """The group that a row sums up."""
    return row.method, row.temperature, row.gamma


def read_speeds(run: Path) -> Speeds:
    """Read records.jsonl as far as it can be read."""
    speeds = Speeds()
    try:
        for record in read_records(run / RECORDS_FILE):
            speeds.add(record)
    except UserError as error:
        speeds.unreadable = str(error).replace(f"{run}/", "")
    return speeds


@dataclass(frozen=True)
class Rivals:
    """The methods that are not significantly slower than the best, and what the prompts could show."""

    names: list[str]
    detectable: float | None
    """The largest of the minimum detectable differences between the best and these; 0.04 for 4 %."""


def rivals(best: SummaryRow, rows: Iterable[SummaryRow], speeds: Speeds) -> Rivals:
    """Paired by prompt on log seconds per token, Holm-corrected over all other methods of the temperature."""
    logs = {
        full_name(row): list(speeds.log_ratios(group_of(best), group_of(row)).values())
        for row in rows
        if row is not best and row.kind != "target"
    }
    p_values = holm({name: paired_p_value(own, [0.0] * len(own)) for name, own in logs.items() if own})
    names = [name for name, p in p_values.items() if p >= SIGNIFICANT]
    shown = [minimum_detectable_difference(logs[name]) for name in names]
    known = [value for value in shown if value is not None]
    return Rivals(names, max(known) if known else None)
