"""The trust verdict: what speaks for and against the numbers of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, median, variance
from typing import Any

from specalign.analysis.families import Comparison, against_itself, against_plain
from specalign.analysis.sampled_tokens import sampler_tests
from specalign.analysis.speeds import Speeds, speeds_of
from specalign.probes import Probe
from specalign.records import GenerationRecord, StepTrace
from specalign.results import LOOKUPS, TARGET, BenchmarkResult, Check, SummaryRow

LEAST_DRIFT = 0.02
"""Relative change of the plain target's step time between the halves of a run that interleaving takes care of."""
MOST_NOISE = 0.1
"""Change that must at least be visible through the noise of the plain target's step time."""
DRIFT_Z = 2.58
"""Standard errors beyond which a change is more than noise: one steady run in a hundred goes beyond."""
MAX_RESIDUAL = 0.1
"""Relative gap between predicted and measured decode speed-up that still counts as understood."""
MAX_RESOLUTION = 0.25
"""Smallest relative difference in speed that a run must be able to show."""
MAX_BUSY = 0.25
"""Share of the processor's time that other processes took, above which the machine is busy."""
MAX_DISTURBED = 0.02
"""Share of the generations that may have been made on a busy machine."""
LEAST_P_VALUE = 1e-3
"""Below it the sampler test fails: at most one sound run in a thousand."""


def trust_checks(
    result: BenchmarkResult,
    records: Sequence[GenerationRecord],
    rows: Sequence[SummaryRow],
    probes: Sequence[Probe] = (),
) -> list[Check]:
    """One line a check, each with the figures that it rests on."""
    speeds = speeds_of(records)
    found = [
        _lossless(rows),
        _sampler(records, probes),
        _accounting(records),
        _prediction(rows),
        _samples(result, records),
        _resolution(speeds),
        _itself(speeds),
        _drift(records),
        _quiet(result, records),
        _source(result.provenance.get("git", {})),
    ]
    return [check for check in found if check]


def _lossless(rows: Sequence[SummaryRow]) -> Check:
    greedy = [row for row in rows if row.temperature == 0 and row.kind != "target" and row.lossless]
    n = sum(row.n_effective for row in greedy)
    ties = sum(row.n_tie_divergences for row in greedy)
    numeric = sum(row.n_numeric_divergences for row in greedy)
    unexplained = sum(row.n_unexplained_divergences for row in greedy)
    equal = n - ties - numeric - unexplained
    detail = f"of {n} greedy speculative outputs {equal} equal the plain target's token for token"
    detail += (
        f", {ties} leave it at a tie of logits, {numeric} within rounding, {unexplained} for no known reason"
    )
    return Check("lossless", None if not n else unexplained == 0, detail)


def _sampler(records: Sequence[GenerationRecord], probes: Sequence[Probe]) -> Check | None:
    """Tokens that lie in p where samples of p lie, drafts accepted as often as they should be."""
    found = sampler_tests(records, probes)
    if not found:
        return None
    worst = min(found, key=lambda test: (test.p_value, test.moments.p_value))
    method, temperature, gamma = worst.row
    value, wanted = worst.moments.observed / worst.n, worst.moments.expected / worst.n
    told = {
        "tokens": f"its {worst.n} tokens lie at {value:.3f} of the target's distribution, samples at {wanted:.3f}",
        "acceptances": f"of {worst.n} examined drafts {value:.3f} are accepted, where {wanted:.3f} should be",
    }[worst.what]
    detail = (
        f"{len(found)} sums over sampled tokens and acceptances; furthest from what they should be: {method} at "
        f"temperature {temperature:g}, gamma {gamma}: {told} (p = {worst.p_value:.2g})"
    )
    return Check("sampler", worst.p_value >= LEAST_P_VALUE, detail)


def _accounting(records: Sequence[GenerationRecord]) -> Check:
    if any(record.counts for record in records):
        return _counted(records)
    good = [record for record in records if record.steps]
    wrong = [record.order for record in good if record.steps and not _accounted(record, record.steps)]
    n_tokens = sum(len(record.token_ids) for record in good)
    detail = f"{n_tokens} emitted tokens are accepted drafts or the target's own; {_lengths(good)}"
    return Check("token accounting", not wrong, f"records {wrong} do not add up" if wrong else detail)


def _counted(records: Sequence[GenerationRecord]) -> Check:
    """The first token, then each draft's accepted tokens and one of the target's own; the last are cut off."""
    counted = [(record, record.counts) for record in records if record.counts and record.method not in LOOKUPS]
    wrong = [
        record.order
        for record, counts in counted
        if not 0 <= 1 + counts.n_drafts + counts.n_accepted - len(record.token_ids) <= record.gamma
    ]
    detail = f"the counters of {len(counted)} generations are those of their own tokens; {_lengths(records)}"
    if wrong:
        detail = f"the counters of records {wrong} are not those of their tokens: did others use the server?"
    return Check("token accounting", not wrong if counted else None, detail)


def _lengths(records: Sequence[GenerationRecord]) -> str:
    """Speed is counted a token, so outputs of other lengths are fair; but they are other outputs."""
    plain = [len(record.token_ids) for record in records if record.method == TARGET]
    drafted = [len(record.token_ids) for record in records if record.gamma]
    if not plain or not drafted:
        return "nothing to compare the lengths of outputs with"
    return f"an output has {mean(plain):.1f} tokens on average, a speculative one {mean(drafted):.1f}"


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


def _resolution(speeds: Speeds) -> Check:
    """What speed-up the joint test of all rows can show with this many prompts, for the noisiest method."""
    family = against_plain(speeds)
    shown = [(found.detectable, found) for found in family.comparisons if found.detectable is not None]
    if not shown:
        few = f": p cannot go below {family.smallest_p:.2g}" if family.n_prompts else ""
        return Check("resolution", None, f"{family.n_prompts} prompts cannot show any difference{few}")
    worst, noisiest = max(shown, key=lambda pair: pair[0])
    detail = (
        f"the speed-up of {_named(noisiest)} would show (power 80 %, {len(family.comparisons)} rows tested together) "
        f"from a difference of {worst:.0%} on; p is at least {family.smallest_p:.2g}"
    )
    return Check("resolution", worst <= MAX_RESOLUTION, detail)


def _itself(speeds: Speeds) -> Check | None:
    """A/A: a method must not differ from itself. None where nothing was repeated."""
    family = against_itself(speeds)
    if not family.comparisons:
        return None
    ratios = [found.estimate.interval() for found in family.comparisons]
    holding = sum(ratio.low is None or ratio.high is None or ratio.low <= 1 <= ratio.high for ratio in ratios)
    detail = (
        f"the even repeats of {len(ratios)} rows against their odd ones: {min(ratio.value for ratio in ratios):.3f} to "
        f"{max(ratio.value for ratio in ratios):.3f} in speed, {holding} of {len(ratios)} intervals hold 1"
    )
    worst = min(family.comparisons, key=lambda found: found.p_value)
    if worst.differs:
        detail += f"; {_named(worst)} differs from itself: {worst.ratio.value:.3f}x"
    if not family.can_show:
        detail += f"; {family.n_prompts} prompts cannot show any difference"
    return Check("same against itself", not worst.differs if family.can_show else None, detail)


def _named(found: Comparison) -> str:
    method, temperature, gamma = found.first
    return (
        f"{method} (gamma {gamma}) at temperature {temperature:g}"
        if gamma
        else f"{method} at temperature {temperature:g}"
    )


def _drift(records: Sequence[GenerationRecord]) -> Check:
    """The plain target's step time in the first and second half of the run, against its own noise."""
    plain = [record for record in records if record.method == TARGET and record.steps]
    if len(plain) < 4:
        return Check("steady clock", None, "too few plain generations to see drift")
    plain.sort(key=lambda record: record.order)
    steps = [median(record.steps.verify_s) for record in plain if record.steps]
    halves = steps[: len(steps) // 2], steps[len(steps) // 2 :]
    first, second = (math.exp(mean(map(math.log, half))) for half in halves)
    change = second / first - 1
    noise = math.expm1(DRIFT_Z * _standard_error(halves))
    detail = f"the plain target's step: {1000 * first:.1f} ms in the first half, {1000 * second:.1f} ms in the second"
    detail += f" ({change:+.1%}; its own noise explains {noise:.1%})"
    moved = abs(change) > max(noise, LEAST_DRIFT)
    return Check("steady clock", False if moved else True if noise <= MOST_NOISE else None, detail)


def _standard_error(halves: tuple[Sequence[float], Sequence[float]]) -> float:
    """Of the difference of two means of logarithms."""
    return math.sqrt(sum(variance([math.log(value) for value in half]) / len(half) for half in halves))


def _prediction(rows: Sequence[SummaryRow]) -> Check:
    """Whether the cost model, fed with times that were measured apart, says what came out."""
    gaps = [
        (abs(row.predicted_from_probes / row.decode_speedup.value - 1), row)
        for row in rows
        if row.predicted_from_probes and row.decode_speedup
    ]
    if not gaps:
        return Check("prediction", None, "no call times were measured apart from the generations")
    worst, row = max(gaps, key=lambda gap: gap[0])
    assert row.decode_speedup is not None
    detail = (
        f"worst of {len(gaps)} rows: {row.method} (gamma {row.gamma}, temperature {row.temperature:g}) was predicted "
        f"at {row.predicted_from_probes:.2f}x and decoded at {row.decode_speedup.value:.2f}x, {worst:.0%} apart"
    )
    return Check("prediction", worst <= MAX_RESIDUAL, detail)


def _quiet(result: BenchmarkResult, records: Sequence[GenerationRecord]) -> Check:
    """On average over the run, and in single generations: a burst of work elsewhere spoils those that it meets.

    The work of servers that decode is not told from that of others: for them only the time before the run counts.
    """
    hardware = result.provenance.get("hardware", {})
    in_this_process = result.config.get("engine", {}).get("name", "own") == "own"
    before, during = hardware.get("busy_before"), hardware.get("busy_during") if in_this_process else None
    if before is None:
        return Check("quiet machine", None, "how busy the machine was before the run is not known")
    detail = f"other processes took {before:.0%} of the processor just before the run"
    detail += "" if during is None else f" and {during:.0%} during it"
    shares = [record.busy for record in records if record.busy is not None]
    disturbed = sum(share > MAX_BUSY for share in shares)
    if shares:
        detail += f"; more than {MAX_BUSY:.0%} in {disturbed} of {len(shares)} generations"
    quiet = max(before, during or 0.0) <= MAX_BUSY and disturbed <= MAX_DISTURBED * len(shares)
    return Check("quiet machine", quiet, detail)


def _source(git: dict[str, Any]) -> Check:
    if not git:
        return Check("known source", None, "an installed package, not a git checkout")
    state = "with uncommitted changes" if git["dirty"] else "clean"
    return Check("known source", not git["dirty"], f"commit {git['commit'][:12]}, {state}")
