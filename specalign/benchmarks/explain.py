"""Why a drafter is as fast as it is: the cost model, filled with a run's own medians, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from specalign.benchmarks.comparison import seconds_per_token, step_costs
from specalign.benchmarks.config import TARGET
from specalign.benchmarks.cost_model import (
    StepCosts,
    break_even_alpha,
    expected_tokens,
    speedup,
    tokens_from_survival,
)
from specalign.metrics.comparisons import holm, minimum_detectable_difference, paired_p_value
from specalign.metrics.timing import median_step_s
from specalign.results import BenchmarkResult, GenerationRecord, StepTrace, SummaryRow

SIGNIFICANT = 0.05
VerifySeconds = Callable[[int], float]
"""Positions of a target call -> its median seconds."""


@dataclass(frozen=True)
class Outlook:
    """What one draft length would give."""

    gamma: int
    speedup: float
    break_even_alpha: float | None


def explain(result: BenchmarkResult, records: Sequence[GenerationRecord]) -> list[str]:
    """A paragraph a row that drafted, one on the ceiling, and one on which differences are real."""
    good = [record for record in records if record.status == "ok" and record.steps]
    lines = _ceiling(result, good)
    for row in result.rows:
        if row.kind != "target":
            lines += ["", *_explain_row(row, good)]
    for temperature in sorted({record.temperature for record in good}):
        lines += ["", *_differences([record for record in good if record.temperature == temperature])]
    return lines


def outlooks(
    tokens: Callable[[int], float], costs: StepCosts, verify_s: VerifySeconds, gamma_max: int
) -> list[Outlook]:
    """Predicted speed-up at gamma = 1..gamma_max.

    ``tokens`` gives tokens per step of a draft length; draft and verification times scale from ``costs``, which
    hold for one gamma; the overhead is taken as the same for all.
    """
    found = []
    for gamma in range(1, gamma_max + 1):
        scaled = StepCosts(
            gamma,
            costs.target_s,
            costs.plain_overhead_s,
            costs.draft_s / costs.gamma * gamma,
            verify_s(gamma + 1),
            costs.overhead_s,
        )
        found.append(Outlook(gamma, speedup(tokens(gamma), scaled), break_even_alpha(scaled)))
    return found


def best(found: Sequence[Outlook]) -> Outlook:
    """The fastest of them."""
    return max(found, key=lambda outlook: outlook.speedup)


def plan(
    *,
    target_s: float,
    verify_s: float,
    draft_s: float,
    overhead_s: float,
    alpha: float,
    gamma: int,
    gamma_max: int,
) -> list[Outlook]:
    """Predicted speed-up at gamma = 1..gamma_max from times measured elsewhere.

    ``verify_s`` is T_target(gamma + 1) and ``draft_s`` T_draft(1); acceptance is i.i.d. at ``alpha``; between and
    beyond T_target(1) and T_target(gamma + 1) verification grows along a straight line.
    """
    growth = (verify_s - target_s) / gamma
    costs = StepCosts(gamma, target_s, 0.0, gamma * draft_s, verify_s, overhead_s)
    return outlooks(
        lambda n: expected_tokens(alpha, n),
        costs,
        lambda positions: target_s + growth * (positions - 1),
        gamma_max,
    )


def plan_lines(found: Sequence[Outlook], alpha: float) -> list[str]:
    """The outlooks as a table and one sentence of advice."""
    lines = ["gamma  speed-up  break-even alpha"]
    for outlook in found:
        needed = "never pays" if outlook.break_even_alpha is None else f"{outlook.break_even_alpha:.2f}"
        lines.append(f"{outlook.gamma:5}  {outlook.speedup:7.2f}x  {needed:>16}")
    choice = best(found)
    if choice.speedup <= 1:
        return [
            *lines,
            f"At alpha {alpha:g} no gamma pays; the best, {choice.gamma}, gives {choice.speedup:.2f}x.",
        ]
    return [*lines, f"At alpha {alpha:g} use gamma = {choice.gamma}: {choice.speedup:.2f}x (an estimate)."]


def verify_curve(traces: Sequence[StepTrace], gamma_max: int) -> dict[int, float]:
    """Positions of a target call -> median seconds, where the run has such calls."""
    medians = {n + 1: median_step_s(traces, "verify_s", n) for n in range(gamma_max + 1)}
    return {positions: seconds for positions, seconds in medians.items() if seconds is not None}


def interpolated(curve: Mapping[int, float]) -> VerifySeconds:
    """The curve between its measured points, by straight lines."""
    positions = sorted(curve)
    seconds = [curve[place] for place in positions]
    return lambda n: float(np.interp(n, positions, seconds))


def _explain_row(row: SummaryRow, records: Sequence[GenerationRecord]) -> list[str]:
    same = [record for record in records if record.temperature == row.temperature]
    own = [record.steps for record in same if record.method == row.method and record.gamma == row.gamma]
    plain = [record.steps for record in same if record.method == TARGET]
    ours, theirs = [trace for trace in own if trace], [trace for trace in plain if trace]
    title = f"{row.method}, temperature {row.temperature:g}, gamma {row.gamma}"
    costs = step_costs(ours, theirs, row.gamma)
    if costs is None or row.decode_speedup is None or row.alpha_counted is None or row.tau is None:
        return [f"{title}: no step drafted {row.gamma} tokens, so there is nothing to explain."]
    curve = {1: costs.target_s, row.gamma + 1: costs.verify_s}
    curve = verify_curve(ours, row.gamma) | curve
    survival = row.survival_by_position
    choices = outlooks(
        lambda gamma: tokens_from_survival(survival[:gamma]), costs, interpolated(curve), row.gamma
    )
    iid = speedup(expected_tokens(row.alpha_counted.value, row.gamma), costs)
    return [
        f"{title}: decoding runs at {row.decode_speedup.value:.2f}x the plain target's speed.",
        f"  predicted: {row.predicted_speedup:.2f}x from the survival curve, {iid:.2f}x from alpha alone",
        f"  a plain step: {_ms(costs.target_s)} target + {_ms(costs.plain_overhead_s)} rest",
        f"  a step of gamma {row.gamma}: {_ms(costs.draft_s)} draft (c = {costs.c:.2f}) + {_ms(costs.verify_s)} "
        f"verify ({costs.verify_ratio:.2f} plain calls) + {_ms(costs.overhead_s)} rest",
        f"  so it costs {costs.price:.2f} plain steps and emits {row.tau.value:.2f} tokens; {_need(row)}",
        f"  {reason(costs, row.tau.value, best(choices))}",
    ]


def reason(costs: StepCosts, tau: float, choice: Outlook) -> str:
    """The one sentence: what makes it fast or slow, and what to do."""
    advice = f"the best gamma up to {costs.gamma} is {choice.gamma}, predicted {choice.speedup:.2f}x"
    if choice.speedup <= 1:
        advice = f"no gamma up to {costs.gamma} pays (best: {choice.gamma}, predicted {choice.speedup:.2f}x)"
    if tau > costs.price:
        return f"faster: a step emits more tokens than it costs; {advice}."
    growth = costs.verify_s - costs.target_s
    causes = {
        f"verifying {costs.gamma + 1} positions costs {costs.verify_ratio:.2f} single calls here": growth,
        f"drafting {costs.gamma} tokens costs {costs.c * costs.gamma:.2f} target calls": costs.draft_s,
        "sampling and bookkeeping cost more than in plain decoding": costs.overhead_s - costs.plain_overhead_s,
    }
    return f"slower, most of all because {max(causes, key=lambda cause: causes[cause])}; {advice}."


def _need(row: SummaryRow) -> str:
    if row.alpha_counted is None or row.break_even_alpha is None:
        return "no acceptance rate would pay for it"
    return f"break-even alpha is {row.break_even_alpha:.2f}, reached is {row.alpha_counted.value:.2f}"


def _ceiling(result: BenchmarkResult, records: Sequence[GenerationRecord]) -> list[str]:
    """Model bandwidth utilisation of the plain step."""
    rate = result.provenance.get("copy_bytes_per_s")
    plain = [record.steps for record in records if record.method == TARGET and record.steps]
    step_s = median_step_s(plain, "verify_s", 0)
    if not rate or step_s is None:
        return ["The run has no plain steps or no measured bandwidth: no ceiling."]
    least = result.target.bytes_per_step / rate
    return [
        f"The plain target's step takes {_ms(step_s)}; reading its {result.target.bytes_per_step / 1e6:.0f} MB at "
        f"the copy bandwidth of {rate / 1e9:.1f} GB/s takes {_ms(least)}: {least / step_s:.0%} of the ceiling."
    ]


def _differences(records: Sequence[GenerationRecord]) -> list[str]:
    """All pairs of methods, paired by prompt, Holm-corrected, with what this many prompts could show."""
    speeds = seconds_per_token(records)
    p_values, gaps, resolutions = {}, {}, {}
    for first, second in combinations(speeds, 2):
        shared = [prompt for prompt in speeds[first] if prompt in speeds[second]]
        ours, theirs = ([math.log(speeds[who][prompt]) for prompt in shared] for who in (first, second))
        name = f"{first} against {second}"
        p_values[name] = paired_p_value(ours, theirs)
        logs = [a - b for a, b in zip(ours, theirs, strict=True)]
        gaps[name] = math.exp(sum(logs) / len(logs)) if logs else math.nan
        resolutions[name] = minimum_detectable_difference(logs)
    adjusted = holm(p_values)
    lines = [f"Differences at temperature {records[0].temperature:g} (seconds per token, paired by prompt):"]
    for name, p in adjusted.items():
        verdict = f"{gaps[name]:.2f}x" if p < SIGNIFICANT else "no significant difference"
        shown = resolutions[name]
        bound = "" if shown is None else f"; differences below {shown:.0%} would not show"
        lines.append(f"  {name}: {verdict} (Holm-adjusted p = {p:.2g}{bound})")
    return lines


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
