"""The trust verdict: what speaks for and against the numbers of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from specalign.benchmarks.comparison import seconds_per_token
from specalign.benchmarks.config import TARGET
from specalign.metrics.comparisons import minimum_detectable_difference
from specalign.results import BenchmarkResult, Check, GenerationRecord, StepTrace, SummaryRow

MAX_DRIFT = 0.1
"""Relative change of the plain target's step time between the halves of a run that is still called steady."""
MAX_RESOLUTION = 0.25
"""Smallest relative difference in speed that a run must be able to show."""
MAX_BUSY = 0.25
"""Share of the processor's time that other processes took just before the run, above which the machine is busy."""


def trust_checks(
    result: BenchmarkResult, records: Sequence[GenerationRecord], rows: Sequence[SummaryRow]
) -> list[Check]:
    """One line a check, each with the figures that it rests on."""
    return [
        _lossless(rows),
        _accounting(records),
        _samples(result, records),
        _resolution(records),
        _drift(records),
        _quiet(result.provenance.get("hardware", {})),
        _source(result.provenance.get("git", {})),
    ]


def _lossless(rows: Sequence[SummaryRow]) -> Check:
    greedy = [row for row in rows if row.temperature == 0 and row.kind != "target" and row.lossless]
    n = sum(row.n_effective for row in greedy)
    ties = sum(row.n_tie_divergences for row in greedy)
    unexplained = sum(row.n_unexplained_divergences for row in greedy)
    detail = (
        f"of {n} greedy speculative outputs {n - ties - unexplained} equal the plain target's token for token"
    )
    detail += f", {ties} leave it at a tie of logits, {unexplained} for no known reason"
    return Check("lossless", None if not n else unexplained == 0, detail)


def _accounting(records: Sequence[GenerationRecord]) -> Check:
    good = [record for record in records if record.steps]
    wrong = [record.order for record in good if record.steps and not _accounted(record, record.steps)]
    n_tokens = sum(len(record.token_ids) for record in good)
    detail = f"{n_tokens} emitted tokens are accepted drafts or the target's own"
    return Check("token accounting", not wrong, f"records {wrong} do not add up" if wrong else detail)


def _accounted(record: GenerationRecord, steps: StepTrace) -> bool:
    """Every token is accepted or the target's own, at most one of these a step, missing only in the last."""
    own = [emitted - accepted for emitted, accepted in zip(steps.n_emitted, steps.n_accepted, strict=True)]
    ordered = all(
        accepted <= examined <= drafted
        for accepted, examined, drafted in zip(steps.n_accepted, steps.n_examined, steps.n_drafted, strict=True)
    )
    return (
        sum(steps.n_emitted) == len(record.token_ids) and ordered and set(own[:-1]) <= {1} and own[-1] in (0, 1)
    )


def _samples(result: BenchmarkResult, records: Sequence[GenerationRecord]) -> Check:
    failed = [record for record in records if record.status == "failed"]
    n_prompts = len({record.prompt_id for record in records})
    detail = (
        f"{len(records)} of {result.n_requested} generations over {n_prompts} prompts, {len(failed)} failed"
    )
    if failed:
        detail += f" (first: {failed[0].error})"
    return Check("samples", not failed and len(records) == result.n_requested, detail)


def _resolution(records: Sequence[GenerationRecord]) -> Check:
    """What differences in speed this many prompts can show, for the noisiest method."""
    speeds = [
        seconds_per_token([record for record in records if record.status == "ok" and record.temperature == t])
        for t in sorted({record.temperature for record in records})
    ]
    shown = [
        (resolution, method)
        for by_method in speeds
        for method, cells in by_method.items()
        if method != TARGET and (resolution := _detectable(cells, by_method.get(TARGET, {}))) is not None
    ]
    if not shown:
        return Check("resolution", None, "too few prompts to say what difference would show")
    worst, method = max(shown)
    detail = f"the speed-up of {method} would show (power 80 %) from a difference of {worst:.0%} on"
    return Check("resolution", worst <= MAX_RESOLUTION, detail)


def _detectable(ours: Mapping[str, float], plain: Mapping[str, float]) -> float | None:
    return minimum_detectable_difference([math.log(plain[key] / ours[key]) for key in ours if key in plain])


def _drift(records: Sequence[GenerationRecord]) -> Check:
    """The plain target's median step time in the first and second half of the run."""
    plain = [record for record in records if record.method == TARGET and record.steps]
    if len(plain) < 4:
        return Check("steady clock", None, "too few plain generations to see drift")
    plain.sort(key=lambda record: record.order)
    halves = plain[: len(plain) // 2], plain[len(plain) // 2 :]
    first, second = (
        median(s for record in half if record.steps for s in record.steps.verify_s) for half in halves
    )
    change = second / first - 1
    detail = f"the plain target's step: {1000 * first:.1f} ms in the first half, {1000 * second:.1f} ms in the second"
    return Check("steady clock", abs(change) <= MAX_DRIFT, f"{detail} ({change:+.0%})")


def _quiet(hardware: dict[str, Any]) -> Check:
    busy = hardware.get("busy_before")
    if busy is None:
        return Check("quiet machine", None, "how busy the machine was before the run is not known")
    detail = f"other processes took {busy:.0%} of the processor just before the run"
    return Check("quiet machine", busy <= MAX_BUSY, detail)


def _source(git: dict[str, Any]) -> Check:
    if not git:
        return Check("known source", None, "an installed package, not a git checkout")
    state = "with uncommitted changes" if git["dirty"] else "clean"
    return Check("known source", not git["dirty"], f"commit {git['commit'][:12]}, {state}")
