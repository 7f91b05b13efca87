"""Acceptance from a serving engine's counters, in our definitions. Formulas: docs/metrics.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from specalign.metrics.convert import conditional_from_survival
from specalign.metrics.statistics import ratio_interval
from specalign.records import DraftCounts, GenerationRecord
from specalign.results import Interval


def in_our_terms(record: GenerationRecord, counts: DraftCounts) -> tuple[DraftCounts, int]:
    """What our engine would have counted of the same tokens, and the drafts that the output's end cut short.

    A server counts all that its last step accepted, beyond the end of the output too. Our engine examines nothing
    after an accepted end-of-sequence token, and drafts at most one token less than are still asked for. The counts
    stay as they are where the tokens of the last step are not known.
    """
    if record.n_last is None:
        return counts, 0
    n_beyond = 1 + counts.n_drafts + counts.n_accepted - len(record.token_ids)
    accepted = record.n_last - 1 + n_beyond
    ended_early = record.finish_reason == "length" or n_beyond > 0
    kept = record.n_last - (record.finish_reason == "length" or n_beyond == 0)
    by_position = [
        count - (kept < place <= accepted) for place, count in enumerate(counts.accepted_by_position, 1)
    ]
    ours = replace(counts, n_accepted=sum(by_position), accepted_by_position=by_position)
    return ours, int(ended_early and kept < record.gamma)


def n_examined(counts: DraftCounts, n_cut: int = 0) -> int | None:
    """Drafted tokens that the rule looked at: every draft's first, and one after each accepted but the last.

    sum_i (drafts whose first i - 1 tokens were accepted), i = 1..gamma, without one for each of the ``n_cut`` drafts
    that an output's end cut short. None where some drafts were shorter than gamma: the counters do not say how many
    of them reached their end.
    """
    gamma = len(counts.accepted_by_position)
    if counts.n_drafted != gamma * counts.n_drafts:
        return None
    return sum([counts.n_drafts, *counts.accepted_by_position][:gamma]) - n_cut


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
    cut: dict[str, int] = defaultdict(int)
    for record in records:
        if record.counts:
            ours, n_cut = in_our_terms(record, record.counts)
            by_prompt[record.prompt_id].append(ours)
            cut[record.prompt_id] += n_cut
    if not by_prompt:
        return {}
    prompts = [total(parts) for parts in by_prompt.values()]
    examined = [n_examined(each, cut[name]) for name, each in zip(by_prompt, prompts, strict=True)]
    drafts, accepted = [each.n_drafts for each in prompts], [each.n_accepted for each in prompts]
    curve = survival(total(prompts))
    taus = [1 + each.n_accepted / each.n_drafts for own in by_prompt.values() for each in own if each.n_drafts]
    return {
        "alpha_counted": _alpha(accepted, examined),
        "accepted_per_drafted": ratio_interval(accepted, [each.n_drafted for each in prompts], share=True),
        "tau": ratio_interval([a + d for a, d in zip(accepted, drafts, strict=True)], drafts),
        "tau_by_request": sum(taus) / len(taus) if taus else None,
        "acceptance_by_position": conditional_from_survival([share for share in curve if share is not None]),
        "survival_by_position": curve,
    }


def _alpha(accepted: Sequence[int], examined: Sequence[int | None]) -> Interval | None:
    known = [count for count in examined if count is not None]
    return ratio_interval(accepted, known, share=True) if len(known) == len(examined) else None
