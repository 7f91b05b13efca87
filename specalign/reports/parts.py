"""The sections of a report that take generations apart: by turn, by context, inside and outside of thinking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specalign.analysis.pairs import pair_name
from specalign.analysis.parts import Part, Parts
from specalign.analysis.speeds import Group
from specalign.reports.content import Paragraph, Section, Table
from specalign.reports.tables import interval

LEAST_PROMPTS = 4
"""Prompts that a part needs to be shown."""
TURNS = (
    "Each turn's prompt has the method's own answers before it; speed-up is over the turn's whole requests, at the "
    "plain target's output lengths, paired by conversation. Where outputs differ, so do later prompts."
)
CONTEXTS = (
    "Steps by the tokens before them, prompt and output; speed-up is of decode seconds per token, paired by prompt. A "
    "drafter that was trained on shorter texts than it drafts in shows it here."
)
THINKING = (
    "Steps up to the token that ends the thinking, and after it; speed-up is of decode seconds per token, paired by "
    "prompt."
)


def parts(found: Parts) -> list[Section | None]:
    """What there is enough of."""
    turns = {f"turn {turn + 1}": part for turn, part in found.turns.items()}
    contexts = {f"{least:,} to {2 * least - 1:,}": part for least, part in found.contexts.items()}
    return [
        _section("By turn", TURNS, turns, "common"),
        _section("By length of the context", CONTEXTS, contexts, "decode"),
        _section("Inside and outside of thinking", THINKING, found.thinking, "decode"),
    ]


def _section(title: str, text: str, found: Mapping[str, Part], figure: str) -> Section | None:
    shown = {name: part for name, part in found.items() if part.n_prompts >= LEAST_PROMPTS}
    if len(shown) < 2:
        return None
    own = list(shown.values())
    temperatures = sorted({group[1] for part in own for group in part.speeds.drafted})
    tables = [_at(title, temperature, shown, figure) for temperature in temperatures]
    missing = [name for name in found if name not in shown]
    left_out = f" Left out, with fewer than {LEAST_PROMPTS} prompts: {', '.join(missing)}." if missing else ""
    return Section(title, [Paragraph(text + left_out)], tables)


def _at(title: str, temperature: float, shown: Mapping[str, Part], figure: str) -> Section:
    groups = _groups(list(shown.values()), temperature)
    lines = [line for group in groups for line in _lines(group, list(shown.values()), figure)]
    header = ["method", "figure", *(f"{name} ({part.n_prompts})" for name, part in shown.items())]
    return Section(f"{title} at temperature {temperature:g}", [Table(header, lines)])


def _groups(own: Sequence[Part], temperature: float) -> list[Group]:
    found = dict.fromkeys(group for part in own for group in part.speeds.drafted if group[1] == temperature)
    return sorted(found)


def _lines(group: Group, own: Sequence[Part], figure: str) -> list[list[str]]:
    name = pair_name(group, next(part.speeds for part in own if group in part.speeds.generations), "γ")
    speeds = [part.speeds.speedup(group, figure=figure) for part in own]
    return [
        [name, "speed-up", *(interval(found.interval() if found else None, unit="x") for found in speeds)],
        [name, "tokens per call (τ)", *(interval(part.tau(group)) for part in own)],
        [name, "α counted", *(interval(part.alpha(group)) for part in own)],
    ]
