"""Teacher-forced acceptance beside acceptance in decoding: how far apart, and why."""

from __future__ import annotations

from collections.abc import Sequence

from specalign.probes import ForcedProbe, Probe
from specalign.records import GenerationRecord
from specalign.results import SummaryRow

NOTABLE = 0.05
"""Gap beyond which its causes are named."""
DISAGREE = 0.02
"""Share of like positions at which decoding may see another overlap than teacher forcing: rounding at ties."""


def forced_lines(
    row: SummaryRow,
    ours: Sequence[GenerationRecord],
    plain: Sequence[GenerationRecord],
    probes: Sequence[Probe],
    *,
    first: bool = False,
) -> list[str]:
    """alpha in decoding and teacher-forced, their gap, and at temperature 0 its split into two causes.

    ``first``: only the first token of a draft is drafted from what teacher forcing reads; compare those alone.
    """
    if row.alpha_expected is None or row.alpha_counted is None or row.alpha_teacher_forced is None:
        return []
    forced, expected = row.alpha_teacher_forced.value, row.alpha_expected.value
    gap = expected - forced
    lines = [
        f"  alpha: {row.alpha_counted.value:.3f} counted, {expected:.3f} expected in decoding, {forced:.3f} "
        f"teacher-forced along the plain target's outputs (gap {gap:+.3f})"
    ]
    pairs = like_positions(ours, plain, probes, first=first) if row.kind == "model" else []
    if pairs:
        seen = sum(theirs for _, theirs in pairs) / len(pairs)
        apart = sum(abs(decoding - theirs) > 0.5 for decoding, theirs in pairs) / len(pairs)
        which = "first tokens of drafts" if first else "positions"
        lines.append(
            f"    teacher-forced at the {len(pairs)} {which} that decoding examined: {seen:.3f} "
            f"({seen - forced:+.3f} by which positions these are); the two differ at {apart:.1%} of them"
        )
        if apart > DISAGREE:
            lines.append(
                "    that is not rounding: the drafter sees other inputs in decoding (cache, positions)"
            )
    elif abs(gap) > NOTABLE:
        lines.append(f"    usual causes: {_causes(row)}")
    return lines


def like_positions(
    ours: Sequence[GenerationRecord],
    plain: Sequence[GenerationRecord],
    probes: Sequence[Probe],
    *,
    first: bool = False,
) -> list[tuple[float, float]]:
    """(overlap in decoding, teacher-forced) wherever both speak of the same text: greedy outputs that are equal.

    Of a conversation the turns before the first one that is not. ``first``: of each draft the first token.
    """
    outputs = {
        (record.prompt_id, record.repeat, record.turn): record.token_ids
        for record in plain
        if record.temperature == 0
    }
    forced = {
        (probe.method, probe.prompt_id, probe.repeat, probe.turn): probe.overlap
        for probe in probes
        if isinstance(probe, ForcedProbe) and probe.temperature == 0
    }
    pairs: list[tuple[float, float]] = []
    apart: set[tuple[str, int]] = set()
    for record in sorted(ours, key=lambda record: record.turn):
        conversation = record.prompt_id, record.repeat
        theirs = forced.get((record.method, *conversation, record.turn))
        if record.steps is None or theirs is None or record.temperature:
            continue
        if outputs.get((*conversation, record.turn)) != record.token_ids:
            apart.add(conversation)
        if conversation in apart:
            continue
        place = 0
        for overlap, emitted in zip(record.steps.overlap, record.steps.n_emitted, strict=True):
            examined = overlap[:1] if first else overlap
            like = zip(examined, theirs[place : place + len(examined)], strict=False)
            pairs += [(decoding, share) for decoding, share in like if share is not None]
            place += emitted
    return pairs


def _causes(row: SummaryRow) -> str:
    causes = ["both are samples, of different trajectories", "decoding never examines bonus positions"]
    if row.kind == "lookup":
        causes.append("a longer draft copies on where a fresh search would stop")
    return "; ".join(
        [*causes, "other inputs in decoding (cache, positions, template) if it persists over prompts"]
    )
