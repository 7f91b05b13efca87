"""Acceptance from a serving engine's counters, in our definitions. Formulas: docs/metrics.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from specalign.metrics.convert import conditional_from_survival
from specalign.metrics.statistics import ratio_interval
from specalign.results import DraftCounts, GenerationRecord, Interval


def n_examined(counts: DraftCounts) -> int | None:
    """Drafted tokens that the rule looked at: every draft's first, and one after each accepted but the last.

    sum_i (drafts whose first i - 1 tokens were accepted), i = 1..gamma. None where some drafts were shorter than
    gamma: the counters do not say how many of them reached their end.
    """
    gamma = len(counts.accepted_by_position)
    if counts.n_drafted != gamma * counts.n_drafts:
        return None
    return sum([counts.n_drafts, *counts.accepted_by_position][:gamma])


def total(parts: Sequence[DraftCounts]) -> DraftCounts:
    """The counts of several generations of one gamma together."""
    return DraftCounts(
        sum(part.n_drafts for part in parts),
        sum(part.n_drafted for part in parts),
        sum(part.n_accepted for part in parts),
        [sum(place) for place in zip(*(part.accepted_by_position for part in parts), strict=True)],
    )


def survival(counts: DraftCounts) -> list[float | None]:
    """Share of drafts whose first i tokens were accepted, i = 1..gamma."""
    if not counts.n_drafts:
        return [None] * len(counts.accepted_by_position)
    return [accepted / counts.n_drafts for accepted in counts.accepted_by_position]


def counted_figures(records: Sequence[GenerationRecord]) -> dict[str, object]:
    """The acceptance figures of a row; those that need p, q or single steps stay None.

    tau is 1 + accepted per draft: each draft's verification emits the accepted tokens and the target's own. The
    prompt's own call is left out, as it is in our engine.
    """
    by_prompt: dict[str, list[DraftCounts]] = defaultdict(list)
    for record in records:
        if record.counts:
            by_prompt[record.prompt_id].append(record.counts)
    if not by_prompt:
        return {}
    prompts = [total(parts) for parts in by_prompt.values()]
    drafts, accepted = [each.n_drafts for each in prompts], [each.n_accepted for each in prompts]
    curve = survival(total(prompts))
    taus = [1 + each.n_accepted / each.n_drafts for own in by_prompt.values() for each in own if each.n_drafts]
    return {
        "alpha_counted": _alpha(prompts),
        "accepted_per_drafted": ratio_interval(accepted, [each.n_drafted for each in prompts]),
        "tau": ratio_interval([a + d for a, d in zip(accepted, drafts, strict=True)], drafts),
        "tau_by_request": sum(taus) / len(taus) if taus else None,
        "acceptance_by_position": conditional_from_survival([share for share in curve if share is not None]),
        "survival_by_position": curve,
    }


def _alpha(prompts: Sequence[DraftCounts]) -> Interval | None:
    examined = [n_examined(each) for each in prompts]
    known = [count for count in examined if count is not None]
    return ratio_interval([each.n_accepted for each in prompts], known) if len(known) == len(examined) else None
