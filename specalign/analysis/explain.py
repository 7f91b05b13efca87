"""Why a drafter is as fast as it is: the cost model, filled with a run's own measurements, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from specalign.analysis.cost_model import (
    StepCosts,
    expected_tokens,
    speedup,
    tokens_from_survival,
)
from specalign.analysis.decision import standing
from specalign.analysis.forced import forced_lines
from specalign.analysis.outlook import CallSeconds, Drafting, Outlook, best, outlooks
from specalign.analysis.pairs import pair_lines
from specalign.analysis.prediction import (
    CallTimes,
    call_seconds,
    entering_seconds,
    mean_call_seconds,
    probed_steps,
    target_seconds,
)
from specalign.analysis.speeds import speeds_of
from specalign.analysis.summary import step_costs
from specalign.probes import Probe
from specalign.records import GenerationRecord
from specalign.results import TARGET, BenchmarkResult, SummaryRow
from specalign.run_files import RunFiles

PARTS = ("draft", "verify growth", "sampling", "overhead")


@dataclass(frozen=True)
class Attribution:
    """Mean milliseconds of one step, by part; verification split into one plain call and what it costs beyond."""

    plain_call: float
    draft: float
    verify_growth: float
    sampling: float
    """Sampling, the rule and the bookkeeping of the step."""
    overhead: float
    """Between the steps."""

    @property
    def total(self) -> float:
        """Milliseconds of a step."""
        return self.plain_call + self.draft + self.verify_growth + self.sampling + self.overhead


def explain(run: RunFiles) -> list[str]:
    """A paragraph a row that drafted, one on the ceiling, and one on which differences are real."""
    good = [record for record in run.records if record.status == "ok" and record.steps]
    lines = _ceiling(run.result)
    for row in run.result.rows:
        if row.kind != "target":
            lines += ["", *_explain_row(row, good, run)]
    return lines + pair_lines(speeds_of(run.records))


def _explain_row(row: SummaryRow, records: Sequence[GenerationRecord], run: RunFiles) -> list[str]:
    same = [record for record in records if record.temperature == row.temperature]
    ours = [record for record in same if record.method == row.method and record.gamma == row.gamma]
    plain = [record for record in same if record.method == TARGET]
    title = f"{row.method}, temperature {row.temperature:g}, gamma {row.gamma}"
    if row.adaptive:
        return [
            f"{title} at most: {_verdict(row)}",
            "  drafts of no one length; the row of one length explains its drafter.",
        ]
    costs = step_costs(
        [record.steps for record in ours if record.steps],
        [record.steps for record in plain if record.steps],
        row.gamma,
    )
    if costs is None or row.decode_speedup is None or row.tau is None:
        return [f"{title}: no step drafted {row.gamma} tokens, so there is nothing to explain."]
    choices = _choices(row, costs, same, run)
    return [
        f"{title}: {_verdict(row)}",
        f"  decoding alone runs at {row.decode_speedup.value:.2f}x the plain target's speed",
        *_figures(row),
        *forced_lines(row, ours, plain, run.probes, first=_guesses_on(row, run.result)),
        *_predictions(row, costs),
        *_attribution(costs, ours, run.probes),
        f"  a step costs {costs.price:.2f} plain steps and emits {row.tau.value:.2f} tokens; {_need(row, costs)}",
        "  the model by gamma: " + ", ".join(f"{choice.gamma}: {choice.speedup:.2f}x" for choice in choices),
        f"  {reason(costs, row.tau.value, best(choices), row.decode_speedup.value, _quantization(run.result))}",
    ]


def _guesses_on(row: SummaryRow, result: BenchmarkResult) -> bool:
    """Whether only the first token of its drafts comes from what teacher forcing reads too.

    The others of a parallel draft come from masks, those of a head from its own output in the target's place.
    """
    return any(info.parallel or info.reads for info in result.drafters if info.name == row.method)


def _figures(row: SummaryRow) -> list[str]:
    """Acceptance length, latency and how much of the time the weights are being read."""
    lines = []
    if row.tau is not None and row.tau_by_request is not None:
        lines.append(
            f"  tau {row.tau.value:.2f} pooled over steps, {row.tau_by_request:.2f} as a mean over requests; "
            f"MBSU {_times(row.mbsu)}, FLOPs a token {_times(row.flop_ratio)} the plain target's"
        )
    if row.latency_p50_ms is not None and row.latency_p95_ms is not None:
        lines.append(f"  ms a token: {row.latency_p50_ms:.1f} (p50), {row.latency_p95_ms:.1f} (p95)")
    if row.ceiling_tokens_per_s is not None and row.bandwidth_utilisation is not None:
        lines.append(
            f"  its steps could give {row.ceiling_tokens_per_s:.1f} tokens/s if they only read their weights; "
            f"that takes {row.bandwidth_utilisation:.0%} of their time"
        )
    return lines


def _predictions(row: SummaryRow, costs: StepCosts) -> list[str]:
    iid = (
        "" if row.alpha_counted is None else f"{_iid(row.alpha_counted.value, costs):.2f}x at i.i.d. alpha and "
    )
    leviathan = row.leviathan_speedup
    return [
        f"  predicted: {_times(row.predicted_from_probes)} from the survival curve and single calls timed apart; "
        f"{iid}{_times(row.predicted_speedup)} at the survival curve with its own steps' medians; "
        f"{_times(leviathan)} by Leviathan's formula (verification free, no overhead)"
    ]


def _iid(alpha: float, costs: StepCosts) -> float:
    return speedup(expected_tokens(alpha, costs.gamma), costs)


def measured_parts(costs: StepCosts, records: Sequence[GenerationRecord]) -> Attribution:
    """Where the mean step's time went, in milliseconds."""
    steps = [record.steps for record in records if record.steps]
    draft, verify, rest = (
        1000 * mean(seconds for trace in steps for seconds in getattr(trace, column))
        for column in ("draft_s", "verify_s", "rest_s")
    )
    total = 1000 * sum(record.decode_s for record in records) / sum(len(trace.n_drafted) for trace in steps)
    plain = 1000 * costs.target_s
    return Attribution(plain, draft, verify - plain, rest, total - draft - verify - rest)


def probed_parts(
    costs: StepCosts, records: Sequence[GenerationRecord], probes: Sequence[Probe]
) -> Attribution | None:
    """The same by the cost model: from single calls timed apart."""
    steps = probed_steps(records, probes)
    if steps is None:
        return None
    plain = 1000 * costs.target_s
    draft, verify, rest = (float(1000 * part.mean()) for part in (steps.draft_s, steps.verify_s, steps.rest_s))
    return Attribution(plain, draft, verify - plain, rest, 0.0)


def _attribution(costs: StepCosts, records: Sequence[GenerationRecord], probes: Sequence[Probe]) -> list[str]:
    """The mean step's milliseconds beyond one plain call, measured, and how far off the cost model is in each part."""
    measured, model = measured_parts(costs, records), probed_parts(costs, records, probes)
    lines = [f"  ms a step: {measured.total:.1f}, of which {measured.plain_call:.1f} are one plain target call"]
    for name in PARTS:
        ms = getattr(measured, name.replace(" ", "_"))
        line = f"    {name + ':':14} {ms:+7.1f}"
        if model is not None:
            expected = getattr(model, name.replace(" ", "_"))
            line += f"  (model {expected:+.1f}, residual {ms - expected:+.1f})"
        lines.append(line)
    return lines


def _choices(
    row: SummaryRow, costs: StepCosts, records: Sequence[GenerationRecord], run: RunFiles
) -> list[Outlook]:
    """Every gamma up to the run's longest for this method, with the survival and the draft lengths seen there."""
    same = [
        other for other in run.result.rows if (other.method, other.temperature) == (row.method, row.temperature)
    ]
    longest = max(same, key=lambda other: other.gamma)
    survival = longest.survival_by_position
    steps = [r.steps for r in records if r.steps and (r.method, r.gamma) == (row.method, longest.gamma)]
    measured = {1: costs.target_s, row.gamma + 1: costs.verify_s}
    draft_s = _call_curve(
        run.probes,
        call_seconds(run.probes, row.method, row.temperature),
        len(survival),
        {row.gamma: costs.draft_s},
    )
    entering = entering_seconds(run.probes, row.method, row.temperature)

    def tokens(n: int) -> float:
        return tokens_from_survival(survival[:n])

    drafting = Drafting(
        tokens=tokens,
        draft_s=lambda n: draft_s(n) + (mean_call_seconds(run.probes, entering, tokens(n) - 1) or 0.0),
        verify_s=_call_curve(run.probes, target_seconds(run.probes, row.method), len(survival) + 1, measured),
        lengths=[n for trace in steps for n in trace.n_drafted],
    )
    return outlooks(drafting, costs, len(survival))


def _call_curve(
    probes: Sequence[Probe], calls: CallTimes | None, n_max: int, measured: dict[int, float]
) -> CallSeconds:
    """Seconds by tokens of a call: from probes, else a straight line through what the steps themselves showed."""
    seconds = {n: mean_call_seconds(probes, calls, n) for n in range(1, n_max + 1)}
    known = {n: value for n, value in seconds.items() if value is not None}
    if known:
        return lambda n: known[n]
    (first, low), (last, high) = min(measured.items()), max(measured.items())
    slope = (high - low) / (last - first) if last > first else low / first
    return lambda n: low + slope * (n - first)


def _verdict(row: SummaryRow) -> str:
    """The report's own."""
    if row.speedup is None:
        return "no prompt was decoded by both it and the plain target."
    joint = row.speedup_joint
    bounds = "" if joint is None or joint.low is None else f" [{joint.low:.2f}, {joint.high:.2f}]"
    words = "not shown to differ from it" if standing(row) == "not shown to differ" else standing(row)
    return f"{row.speedup.value:.2f}x{bounds} the plain target's speed, {words} (all rows tested together)."


def reason(costs: StepCosts, tau: float, choice: Outlook, measured: float, quantization: str = "none") -> str:
    """The one sentence: what makes decoding, ``measured`` times as fast, fast or slow, and what to do."""
    if choice.gamma == costs.gamma:
        advice = f"no other gamma would do better than {choice.gamma}"
    else:
        advice = f"with gamma = {choice.gamma} you would get {choice.speedup:.2f}x"
    if choice.speedup <= 1:
        advice = f"by the model no gamma pays (best: {choice.gamma}, {choice.speedup:.2f}x)"
    if (tau > costs.price) != (measured > 1):
        return (
            f"measured at {measured:.2f}x, by the medians of its steps {tau / costs.price:.2f}x: they disagree, so no "
            f"one reason is given; {advice}."
        )
    if measured > 1:
        return f"faster: a step emits more tokens than it costs; {advice}."
    kernels = "" if quantization == "none" else f" ({quantization} kernels are bound by computing)"
    causes = {
        f"verification of {costs.gamma + 1} tokens costs {costs.verify_ratio:.2f} single steps here{kernels}": (
            costs.verify_s - costs.target_s
        ),
        f"drafting {costs.gamma} tokens costs {costs.c * costs.gamma:.2f} target calls": costs.draft_s,
        "sampling and bookkeeping cost more than in plain decoding": costs.overhead_s - costs.plain_overhead_s,
    }
    return f"slower because {max(causes, key=lambda cause: causes[cause])}; {advice}."


def _need(row: SummaryRow, costs: StepCosts) -> str:
    if row.alpha_counted is None or row.break_even_alpha is None:
        return "no acceptance rate would pay for it"
    fast_enough = "no drafter is fast enough" if row.break_even_c is None else f"c {row.break_even_c:.3f}"
    return (
        f"break-even: alpha {row.break_even_alpha:.2f} at this c of {costs.c:.3f}, or {fast_enough} "
        f"at this alpha of {row.alpha_counted.value:.2f}"
    )


def _ceiling(result: BenchmarkResult) -> list[str]:
    """Model bandwidth utilisation of the plain target."""
    plain = next((row for row in result.rows if row.kind == "target" and row.bandwidth_utilisation), None)
    rate = result.provenance.get("copy_bytes_per_s")
    if plain is None or not rate or plain.ceiling_tokens_per_s is None or plain.bandwidth_utilisation is None:
        return ["The run has no plain steps or no measured bandwidth: no ceiling."]
    return [
        f"The plain target reads {result.target.bytes_per_step / 1e6:.0f} MB a step; at the copy bandwidth of "
        f"{rate / 1e9:.1f} GB/s that allows {plain.ceiling_tokens_per_s:.1f} tokens/s: decoding runs at "
        f"{plain.bandwidth_utilisation:.0%} of the ceiling."
    ]


def _quantization(result: BenchmarkResult) -> str:
    return str(result.config.get("target", {}).get("quantization", "none"))


def _times(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}x"
