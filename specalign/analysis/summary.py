"""From records to the rows of the comparison. Pure: the same records give the same rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from specalign.analysis.cost_model import (
    StepCosts,
    break_even_alpha,
    break_even_c,
    leviathan_speedup,
    predicted_speedup,
)
from specalign.analysis.families import Family, against_plain
from specalign.analysis.prediction import predicted_from_probes
from specalign.analysis.speeds import Group, Speeds, plain_of, speeds_of
from specalign.metrics import acceptance
from specalign.metrics.accuracy import accuracy
from specalign.metrics.ceilings import flop_ratio, least_seconds, memory_bound_speedup
from specalign.metrics.counters import counted_figures
from specalign.metrics.rouge import mean_rouge
from specalign.metrics.statistics import ratio_interval
from specalign.metrics.timing import latency_percentiles_ms, median_step_s, step_costs_by_draft, time_split
from specalign.probes import ForcedProbe, Probe, copy_rate, model_probes
from specalign.records import GenerationRecord, StepTrace
from specalign.results import ALONE, LOOKUPS, TARGET, Alphabet, Interval, Rouge, SummaryRow, TimeSplit


@dataclass(frozen=True)
class Evidence:
    """What the rows of a run rest on besides their own records."""

    plain: Mapping[float, Sequence[GenerationRecord]]
    """Temperature -> good generations of the plain target."""
    alone: Mapping[tuple[str, float], Sequence[GenerationRecord]]
    """(Drafter, temperature) -> its good generations on its own."""
    divergences: Mapping[int, str]
    """Order of a greedy record that differs from the plain target's -> "tie", "numeric" or what else it is."""
    probes: Sequence[Probe]
    words: Alphabet
    """ROUGE's."""
    speeds: Speeds
    """Seconds and tokens of all generations."""
    joint: Family
    """Every row against the plain target, tested as one family."""


def summarise(
    records: Iterable[GenerationRecord],
    divergences: Mapping[int, str] | None = None,
    probes: Sequence[Probe] = (),
    *,
    words: Alphabet = "unicode",
) -> list[SummaryRow]:
    """One row a (method, temperature, gamma), in order of first appearance.

    ``divergences`` says of each greedy record that differs from the plain target's, by its ``order``, whether it
    is a "tie" or "numeric"; the others count as unexplained. Figures that rest on ``probes`` are None without them.
    ``words`` are ROUGE's.
    """
    groups: dict[Group, list[GenerationRecord]] = defaultdict(list)
    plain: dict[float, list[GenerationRecord]] = defaultdict(list)
    alone: dict[tuple[str, float], list[GenerationRecord]] = defaultdict(list)
    ordered = sorted(records, key=lambda record: record.order)
    for record in ordered:
        if record.rule != ALONE:
            groups[record.method, record.temperature, record.gamma].append(record)
        elif record.status == "ok":
            alone[record.method, record.temperature].append(record)
        if record.method == TARGET and record.status == "ok":
            plain[record.temperature].append(record)
    speeds = speeds_of(ordered)
    evidence = Evidence(plain, alone, divergences or {}, probes, words, speeds, against_plain(speeds))
    return [_row(group, rows, evidence) for group, rows in groups.items()]


def divergent(records: Iterable[GenerationRecord]) -> list[tuple[GenerationRecord, GenerationRecord]]:
    """(record, the plain target's record) of each lossless greedy generation whose tokens differ.

    Of a conversation only the first such turn: those after it have other prompts.
    """
    good = [record for record in records if record.status == "ok" and record.temperature == 0]
    plain = {_cell(record): record for record in good if record.method == TARGET}
    apart: dict[tuple[object, ...], tuple[GenerationRecord, GenerationRecord]] = {}
    for ours in sorted(good, key=lambda record: record.turn):
        theirs = plain.get(_cell(ours))
        if ours.lossless and theirs and ours.token_ids != theirs.token_ids:
            apart.setdefault((ours.method, ours.gamma, ours.prompt_id, ours.repeat), (ours, theirs))
    return sorted(apart.values(), key=lambda pair: pair[0].order)


def _cell(record: GenerationRecord) -> tuple[str, int, int]:
    return record.prompt_id, record.repeat, record.turn


def _row(group: Group, records: list[GenerationRecord], evidence: Evidence) -> SummaryRow:
    method, temperature, gamma = group
    plain = evidence.plain.get(temperature, [])
    good = [record for record in records if record.status == "ok"]
    first = records[0]
    seconds, tokens = _per_prompt(good, "wall_s"), _tokens(good)
    different = [ours.order for ours, _ in divergent([*good, *plain])] if method != TARGET else []
    p50, p95 = latency_percentiles_ms(_traces(good), (50, 95))
    kinds = Counter(evidence.divergences.get(order, "unexplained") for order in different)
    common = {
        "method": method,
        "kind": _kind(first),
        "temperature": temperature,
        "gamma": gamma,
        "rule": first.rule,
        "lossless": first.lossless,
        "adaptive": first.adaptive,
        "n_requested": len(records),
        "n_effective": len(good),
        "n_failed": len(records) - len(good),
        "tokens_per_s": ratio_interval(list(tokens.values()), list(seconds.values())) or Interval(0.0),
        "ms_per_token": 1000 * sum(seconds.values()) / max(1, sum(tokens.values())),
        "speedup": None,
        "decode_speedup": None,
        "time": time_split(good) if good else TimeSplit(0.0, 0.0, 0.0, 0.0),
        "rouge_vs_reference": _rouge(good, evidence.words),
        "accuracy": _accuracy(good),
        "latency_p50_ms": p50,
        "latency_p95_ms": p95,
        "n_tie_divergences": kinds["tie"],
        "n_numeric_divergences": kinds["numeric"],
        "n_unexplained_divergences": len(different) - kinds["tie"] - kinds["numeric"],
    }
    if good:
        common |= _ceilings(good, evidence.probes)
    if method != TARGET and good:
        common |= (
            _against_target(good, plain, evidence.words) | _acceptance(good, gamma) | _costs(good, plain, gamma)
        )
        common |= _beyond_its_records(group, good, evidence) | _speedups(group, evidence)
    return SummaryRow(**common)  # type: ignore[arg-type]


def _kind(record: GenerationRecord) -> str:
    if record.hybrid:
        return "hybrid"
    return "target" if record.method == TARGET else "lookup" if record.method in LOOKUPS else "model"


def _beyond_its_records(
    group: Group, records: Sequence[GenerationRecord], evidence: Evidence
) -> dict[str, object]:
    """Figures that rest on probes, or on the drafter's own generations."""
    method, temperature, gamma = group
    survival = acceptance.survival_by_position(_traces(records), gamma)
    alone = evidence.alone.get((method, temperature), [])
    return {
        "alpha_teacher_forced": _teacher_forced(method, temperature, evidence.probes),
        "predicted_from_probes": predicted_from_probes(
            records, evidence.plain.get(temperature, []), survival, evidence.probes
        ),
        "rouge_alone": _rouge(alone, evidence.words),
        "accuracy_alone": _accuracy(alone),
    }


def _teacher_forced(method: str, temperature: float, probes: Sequence[Probe]) -> Interval | None:
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for probe in probes:
        if isinstance(probe, ForcedProbe) and (probe.method, probe.temperature) == (method, temperature):
            by_prompt[probe.prompt_id] += [share for share in probe.overlap if share is not None]
    return ratio_interval(
        [sum(own) for own in by_prompt.values()], [len(own) for own in by_prompt.values()], share=True
    )


def _ceilings(records: Sequence[GenerationRecord], probes: Sequence[Probe]) -> dict[str, object]:
    """What the machine and the sizes of the models allow; empty where they are not known."""
    models, rate = model_probes(probes), copy_rate(probes)
    method, gamma, traces = records[0].method, records[0].gamma, _traces(records)
    if TARGET not in models or records[0].hybrid:  # whose steps read now one drafter, now another
        return {}
    target, drafter = models[TARGET], models.get(method)
    drafter_bytes = drafter.bytes_per_step if drafter and gamma else 0
    found: dict[str, object] = {}
    if gamma and acceptance.n_steps(traces):
        tau = acceptance.n_emitted(traces) / acceptance.n_steps(traces)
        found["mbsu"] = memory_bound_speedup(tau, gamma, drafter_bytes / target.bytes_per_step)
        found["flop_ratio"] = flop_ratio(traces, target.n_multiplied, drafter.n_multiplied if drafter else 0)
    decode_s = sum(record.decode_s for record in records)
    if rate and decode_s and acceptance.n_steps(traces):
        least = least_seconds(traces, target.bytes_per_step, drafter_bytes, rate)
        found["ceiling_tokens_per_s"] = acceptance.n_emitted(traces) / least
        found["bandwidth_utilisation"] = least / decode_s
    return found


def _acceptance(records: Sequence[GenerationRecord], gamma: int) -> dict[str, object]:
    traces = _traces(records)
    if not traces:
        return counted_figures(records)
    by_prompt = _traces_by_prompt(records)
    examined = [acceptance.n_examined(own) for own in by_prompt]
    accepted = [acceptance.n_accepted(own) for own in by_prompt]
    return {
        "alpha_expected": ratio_interval(
            [acceptance.total_overlap(own) for own in by_prompt], examined, share=True
        ),
        "alpha_counted": ratio_interval(accepted, examined, share=True),
        "accepted_per_drafted": ratio_interval(
            accepted, [acceptance.n_drafted(own) for own in by_prompt], share=True
        ),
        "tau": ratio_interval(
            [acceptance.n_emitted(own) for own in by_prompt], [acceptance.n_steps(own) for own in by_prompt]
        ),
        "tau_by_request": acceptance.tau_by_request(traces),
        "acceptance_by_position": acceptance.acceptance_by_position(traces, gamma),
        "survival_by_position": acceptance.survival_by_position(traces, gamma),
        "accepted_histogram": acceptance.accepted_histogram(traces, gamma),
    }


def _against_target(
    records: Sequence[GenerationRecord], plain: Sequence[GenerationRecord], words: Alphabet
) -> dict[str, object]:
    theirs = {_cell(record): record for record in plain if record.status == "ok"}
    pairs = [(record, theirs[_cell(record)]) for record in records if _cell(record) in theirs]
    if not pairs:
        return {}
    same = sum(ours.token_ids == other.token_ids for ours, other in pairs)
    rouge = _rouge([ours for ours, _ in pairs], words, {ours.order: other.text for ours, other in pairs})
    return {"rouge_vs_target": rouge, "exact_match_target": same / len(pairs)}


def _costs(
    records: Sequence[GenerationRecord], plain: Sequence[GenerationRecord], gamma: int
) -> dict[str, object]:
    """Cost model from medians over full drafts; empty where there were none (prompt lookup drafts what it finds).

    Of adaptive drafts, which have no one length, only the predicted speed-up.
    """
    traces = _traces(records)
    plain_traces = _traces([record for record in plain if record.status == "ok"])
    if not (traces and plain_traces):
        return {}
    survival = acceptance.survival_by_position(traces, gamma)
    predicted: dict[str, object] = {
        "predicted_speedup": predicted_speedup(
            survival, step_costs_by_draft(traces), step_costs_by_draft(plain_traces)[0][1]
        )
    }
    if records[0].adaptive:
        return predicted
    costs = step_costs(traces, plain_traces, gamma)
    if costs is None:
        return {}
    return {
        "c": costs.c,
        "verify_ratio": costs.verify_ratio,
        "break_even_alpha": break_even_alpha(costs),
        "break_even_c": break_even_c(acceptance.n_emitted(traces) / acceptance.n_steps(traces), costs),
        "leviathan_speedup": leviathan_speedup(_alpha(traces), gamma, costs.c),
        **predicted,
    }


def _alpha(traces: Sequence[StepTrace]) -> float:
    return acceptance.n_accepted(traces) / max(1, acceptance.n_examined(traces))


def step_costs(traces: Sequence[StepTrace], plain: Sequence[StepTrace], gamma: int) -> StepCosts | None:
    """Median seconds of full-length speculative steps and of plain steps; None where either are missing."""
    medians = {
        "target_s": median_step_s(plain, "verify_s", 0),
        "plain_overhead_s": median_step_s(plain, "rest_s", 0),
        "draft_s": median_step_s(traces, "draft_s", gamma),
        "verify_s": median_step_s(traces, "verify_s", gamma),
        "overhead_s": median_step_s(traces, "rest_s", gamma),
    }
    if None in medians.values():
        return None
    return StepCosts(gamma, **medians)  # type: ignore[arg-type]


def _speedups(group: Group, evidence: Evidence) -> dict[str, object]:
    """Plain seconds per token over ours, over the generations that both have."""
    joint = evidence.joint.pair(group, plain_of(group))
    if joint is None:
        return {}
    whole, decode = (evidence.speeds.speedup(group, figure=figure) for figure in ("whole", "decode"))
    return {
        "speedup": joint.estimate.interval(),
        "speedup_joint": joint.ratio,
        "speedup_p": joint.p_value,
        "whole_speedup": whole.interval() if whole else None,
        "decode_speedup": decode.interval() if decode else None,
    }


def _rouge(
    records: Sequence[GenerationRecord], words: Alphabet, references: Mapping[int, str] | None = None
) -> Rouge | None:
    """Against ``references`` (by order), or each record's own."""
    return mean_rouge(
        [record.text for record in records],
        [record.reference if references is None else references[record.order] for record in records],
        [record.prompt_id for record in records],
        words=words,
    )


def _accuracy(records: Sequence[GenerationRecord]) -> Interval | None:
    return accuracy(
        [record.text for record in records],
        [record.reference for record in records],
        [record.prompt_id for record in records],
    )


def _per_prompt(records: Iterable[GenerationRecord], column: str) -> dict[str, float]:
    """Seconds of each prompt, its repeats together."""
    total: dict[str, float] = defaultdict(float)
    for record in records:
        total[record.prompt_id] += getattr(record, column)
    return dict(total)


def _tokens(records: Iterable[GenerationRecord]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for record in records:
        total[record.prompt_id] += len(record.token_ids)
    return dict(total)


def _traces(records: Iterable[GenerationRecord]) -> list[StepTrace]:
    return [record.steps for record in records if record.steps]


def _traces_by_prompt(records: Iterable[GenerationRecord]) -> list[list[StepTrace]]:
    found: dict[str, list[StepTrace]] = defaultdict(list)
    for record in records:
        if record.steps:
            found[record.prompt_id].append(record.steps)
    return list(found.values())
