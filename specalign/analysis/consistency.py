"""Whether a run's records and probes can be of one run, made as its config says: what figures alone do not show."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from scipy.stats import mannwhitneyu

from specalign.analysis.plan import What, by_server, generation_seed, in_turns, shuffled
from specalign.probes import CopyProbe, ForcedProbe, ModelProbe, Probe, SampledProbe
from specalign.provenance import references_sha256
from specalign.records import GenerationRecord, RecordKey, record_key
from specalign.results import ADAPTIVE, ALONE, TARGET, BenchmarkResult
from specalign.run_files import RunFiles

MOST_BETWEEN = 0.01
"""Of a call's seconds, what may lie between its prefill and its decoding, or beside its steps' own."""
MOST_AROUND = 0.03
"""Of a call's seconds, by how much a method's calls may stick out of the second clock, or of the run's gaps."""
LEAST_S = 2e-3
"""Seconds that such differences may have whatever the call takes: a process waits for its turn."""
LEAST_GAP_S = 0.05
"""The same for the time between two calls."""
SURELY = 1e-3
"""p-value, times the number of rows, below which a row's seconds are above the others' by no chance (rank-sum test)."""


def unlike_its_plan(run: RunFiles) -> list[str]:
    """Records that are not the generations that the config plans, in its order and with its seeds."""
    result, records = run.result, run.records
    n_prompts = result.provenance.get("n_prompts", 0)
    plan = _plan(result, records, n_prompts)
    wrong = []
    if result.n_requested != len(plan):
        wrong.append(f"n_requested is {result.n_requested}, the config plans {len(plan)} generations")
    if len(records) != len(plan):
        wrong.append(f"{len(records)} records of {len(plan)} generations that the config plans")
    places = [record.order for record in records]
    if places != sorted(set(places)):
        wrong.append("the records are not in the order of the run")
    misplaced = [
        record
        for record in records
        if not 0 <= record.order < len(plan) or plan[record.order][1:] != (_what(record), record.turn)
    ]
    if misplaced:
        wrong.append(f"{_first(misplaced)}: the config's random order has another generation there")
    elif ids := _prompt_ids(records, plan):
        wrong += _unlike_its_data(result, records, ids)
    else:
        wrong.append("a prompt's place in the random order is taken by another prompt")
    seed = result.config["seed"]
    seeded = [r for r in records if r.seed != generation_seed(seed, r.prompt_id, _what(r), r.turn)]
    if seeded:
        wrong.append(f"{_first(seeded)}: its seed is another generation's")
    return wrong


def _first(records: Sequence[GenerationRecord]) -> str:
    first = records[0]
    more = f" (and {len(records) - 1} more)" if len(records) > 1 else ""
    return f"record {first.order}, {first.method} of prompt {first.prompt_id!r}{more}"


def _what(record: GenerationRecord) -> What:
    return record.method, record.temperature, record.gamma, record.repeat


def _plan(
    result: BenchmarkResult, records: Sequence[GenerationRecord], n_prompts: int
) -> list[tuple[int, What, int]]:
    config, decoding = result.config, result.config["decoding"]
    gammas = _gammas(config, records)
    plan = shuffled(range(n_prompts), gammas, decoding["temperatures"], decoding["repeats"], config["seed"])
    if config.get("engine", {}).get("name", "own") != "own":
        plan = by_server(plan, list(gammas))
    n_turns = result.provenance.get("n_turns", [1] * n_prompts)
    return in_turns(plan, lambda prompt: n_turns[prompt])


def _gammas(config: Mapping[str, Any], records: Sequence[GenerationRecord]) -> dict[str, tuple[int, ...]]:
    """Method -> draft lengths, in the order of the plan. Servers that ran already have their own."""
    decoding, engine = config["decoding"], config.get("engine", {})
    found: dict[str, set[int]] = defaultdict(set)
    adaptive = {record.method for record in records if record.adaptive}
    for record in records:
        found[record.method].add(record.gamma)
    if engine.get("endpoint"):
        names = [entry.partition("=")[0] for entry in engine["endpoint"]]
        return {name: tuple(sorted(found[name])) for name in names}
    named = [entry.partition("=")[0] for entry in config["drafter"]]
    if decoding.get("adaptive"):
        named = [name for one in named for name in (one, one + ADAPTIVE) if name == one or name in found]
    gammas: dict[str, tuple[int, ...]] = {TARGET: (0,)}
    for name in (*config["include"], *named, *(entry.partition("=")[0] for entry in config.get("compose", ()))):
        lengths = (max(decoding["gammas"]),) if name in adaptive else tuple(decoding["gammas"])
        gammas[name] = (*lengths, 0) if decoding.get("student_alone") and 0 in found[name] else lengths
    return gammas


def _prompt_ids(
    records: Iterable[GenerationRecord], plan: Sequence[tuple[int, What, int]]
) -> dict[int, str] | None:
    """Number of a prompt in the data -> its id, read off the random order; None where that has two answers."""
    found: dict[int, set[str]] = defaultdict(set)
    for record in records:
        found[plan[record.order][0]].add(record.prompt_id)
    ids = {number: next(iter(names)) for number, names in sorted(found.items()) if len(names) == 1}
    return ids if len(ids) == len(found) == len(set(ids.values())) else None


def _unlike_its_data(
    result: BenchmarkResult, records: Sequence[GenerationRecord], ids: Mapping[int, str]
) -> list[str]:
    """References that are not those whose hash was taken before the run."""
    recorded = result.provenance.get("references_sha256")
    references: dict[str, dict[int, str]] = defaultdict(dict)
    for record in records:
        references[record.prompt_id][record.turn] = record.reference
    known = [(name, own[turn]) for name in ids.values() for own in [references[name]] for turn in sorted(own)]
    same = recorded in (None, references_sha256(known))
    return [] if same else ["the references are not those that the run began with: another hash"]


def impossible_records(run: RunFiles) -> list[str]:
    """Records that no generation of this config can have left, or that contradict each other."""
    wrong = []
    for problem in (_settings, _times, _steps):
        found = [
            (record, told) for record in run.records if record.status == "ok" and (told := problem(record, run))
        ]
        if found:
            wrong.append(f"{_first([record for record, _ in found])}: {found[0][1]}")
    facts: dict[tuple[str, int], set[tuple[object, ...]]] = defaultdict(set)
    for record in run.records:
        n_tokens = 0 if record.turn else record.n_prompt_tokens  # later prompts have the method's own answers
        facts[record.prompt_id, record.turn].add((record.category, record.reference, n_tokens))
    wrong += [
        f"prompt {name!r} has {len(found)} references, categories or lengths"
        for (name, _), found in facts.items()
        if len(found) > 1
    ]
    return wrong


def _settings(record: GenerationRecord, run: RunFiles) -> str:
    decoding = run.result.config["decoding"]
    alone = record.gamma == 0 and record.method != TARGET
    plain = ALONE if alone else "none" if record.method == TARGET else ""
    rule = plain or ("greedy" if record.temperature == 0 else decoding["rule"])
    due = {
        "rule": rule,
        "top_k": decoding["top_k"],
        "top_p": decoding["top_p"],
    }
    for name, value in due.items():
        if getattr(record, name) != value:
            return f"{name} is {getattr(record, name)!r}, by the config {value!r}"
    if len(record.token_ids) > decoding["max_new_tokens"]:
        return f"{len(record.token_ids)} tokens, where the config ends outputs at {decoding['max_new_tokens']}"
    return ""


def _times(record: GenerationRecord, run: RunFiles) -> str:
    """Parts must fit into the whole, and all but fill it."""
    slack = MOST_BETWEEN * record.wall_s + LEAST_S
    parts = record.prefill_s + record.decode_s
    if parts > record.wall_s + 1e-6 or record.wall_s - parts > slack:
        return f"wall_s is {record.wall_s:.4f}, prefill_s and decode_s come to {parts:.4f}"
    if record.steps:
        spent = math.fsum([*record.steps.draft_s, *record.steps.verify_s, *record.steps.rest_s])
        if spent > record.decode_s + slack:
            return f"decode_s is {record.decode_s:.4f}, its steps come to {spent:.4f}"
    if record.call_s is not None and record.wall_s > record.call_s + 1e-3:
        return f"wall_s is {record.wall_s:.4f}, by the second clock the call took {record.call_s:.4f}"
    return ""


def _steps(record: GenerationRecord, run: RunFiles) -> str:
    steps = record.steps
    if steps is None:
        return ""
    for n_drafted, n_examined, n_accepted, overlap in zip(
        steps.n_drafted, steps.n_examined, steps.n_accepted, steps.overlap, strict=True
    ):
        if not 0 <= n_accepted <= n_examined <= n_drafted <= record.gamma or n_examined - n_accepted > 1:
            return f"a step with {n_accepted} of {n_examined} of {n_drafted} tokens accepted, at gamma {record.gamma}"
        if len(overlap) != n_examined or not all(-1e-6 <= share <= 1 + 1e-6 for share in overlap):
            return f"a step that examined {n_examined} tokens has the overlaps {overlap}"
        if record.rule == "greedy" and abs(sum(overlap) - n_accepted) > 1e-6:
            return f"a greedy step accepted {n_accepted} tokens at overlaps {overlap}"
    by = record.drafted_by
    if by and not (record.hybrid and len(by.part) == len(by.price) == len(steps.n_drafted)):
        return f"{len(steps.n_drafted)} steps, drafted by {len(by.part)} parts at {len(by.price)} prices"
    if by and [len(classes) for classes in by.classes] != steps.n_examined:
        return "classes of confidence at other positions than those that were examined"
    return ""


def unlike_the_clock(run: RunFiles) -> list[str]:
    """Rows whose times leave more of the second clock unexplained than the others': scaled, or edited, together.

    Of every row the median over its generations: of ``call_s`` - ``wall_s``, and of the time from the call's end to the
    next one's begin. Either is the same work whatever the method was; it may exceed the least row's by MOST_AROUND of a
    call, and more by chance. Serving engines settle their counters between calls: only the first is asked of them.
    """
    timed = [record for record in run.records if record.status == "ok" and record.call_s and record.begun_at]
    around: dict[str, list[float]] = defaultdict(list)
    calls: dict[str, list[float]] = defaultdict(list)
    for record in timed:
        around[_row(record)].append((record.call_s or 0.0) - record.wall_s)
        calls[_row(record)].append(record.call_s or 0.0)
    wrong = list(_sticking_out(around, calls, LEAST_S, "seconds of a call are in no record of it"))
    if run.result.config.get("engine", {}).get("name", "own") == "own":
        wrong += _sticking_out(_gaps(timed), calls, LEAST_GAP_S, "seconds pass after a call")
    return wrong


def _row(record: GenerationRecord) -> str:
    return f"{record.method}, temperature {record.temperature:g}, gamma {record.gamma}"


def _gaps(records: Sequence[GenerationRecord]) -> dict[str, list[float]]:
    gaps: dict[str, list[float]] = defaultdict(list)
    for record, following in pairwise(records):
        if record.begun_at and following.begun_at and following.order == record.order + 1:
            gaps[_row(record)].append(following.begun_at - record.begun_at - (record.call_s or 0.0))
    return gaps


def _sticking_out(
    seconds: Mapping[str, Sequence[float]], calls: Mapping[str, Sequence[float]], least: float, what: str
) -> Iterator[str]:
    medians = {row: median(values) for row, values in seconds.items()}
    usual = min(medians.values(), default=0.0)
    for row, found in medians.items():
        others = [value for other, values in seconds.items() if other != row for value in values]
        far = found - usual > least + MOST_AROUND * median(calls[row])
        if far and mannwhitneyu(seconds[row], others, alternative="greater").pvalue * len(medians) < SURELY:
            yield f"{row}: {found:.4f} {what} ({usual:.4f} in another)"


def unlike_its_probes(run: RunFiles) -> list[str]:
    """Probes that are missing, are of other outputs than the records', or say something else than the result."""
    sampled = {_probe_key(p): p.n_tokens for p in run.probes if isinstance(p, SampledProbe)}
    read = [r for r in run.records if r.status == "ok" and r.lossless and r.temperature > 0 and r.steps]
    wrong = []
    if sampled or run.result.schema_version > 1:
        other = [r for r in read if sampled.get(record_key(r)) != len(r.token_ids)]
        wrong += [f"{_first(other)}: no probe 'sampled' of this output"] if other else []
    forced = {_forced_key(p): len(p.overlap) for p in run.probes if isinstance(p, ForcedProbe)}
    drafting = sorted({r.method for r in run.records if r.method != TARGET and not r.hybrid})
    plain = [r for r in run.records if r.status == "ok" and r.method == TARGET and r.steps] if forced else []
    for method in drafting:
        other = [
            r
            for r in plain
            if forced.get((method, r.prompt_id, r.repeat, r.temperature, r.turn)) != len(r.token_ids)
        ]
        wrong += [f"{_first(other)}: no probe 'forced' of {method} along this output"] if other else []
    return [*wrong, *_twice(run.probes), *_other_facts(run)]


def _probe_key(probe: SampledProbe) -> RecordKey:
    return probe.prompt_id, probe.method, probe.temperature, probe.gamma, probe.repeat, probe.turn


def _forced_key(probe: ForcedProbe) -> tuple[str, str, int, float, int]:
    return probe.method, probe.prompt_id, probe.repeat, probe.temperature, probe.turn


def _twice(probes: Sequence[Probe]) -> list[str]:
    """Outputs that were read twice, with two results."""
    outputs = Counter(_probe_key(p) for p in probes if isinstance(p, SampledProbe))
    outputs.update(("forced", *_forced_key(p)) for p in probes if isinstance(p, ForcedProbe))  # type: ignore[misc]
    return [f"{n} probes of one output: {key}" for key, n in outputs.items() if n > 1][:1]


def _other_facts(run: RunFiles) -> list[str]:
    """Sizes of models and the copy rate, which stand in both files."""
    wrong = []
    infos = {info.name: info for info in [run.result.target, *run.result.drafters]}
    for probe in run.probes:
        if isinstance(probe, ModelProbe):
            info = infos.get(probe.method)
            if info is None or (info.bytes_per_step, info.n_multiplied) != (
                probe.bytes_per_step,
                probe.n_multiplied,
            ):
                wrong.append(f"the size of {probe.method} is another in probes.jsonl")
    rates = [probe.bytes_per_s for probe in run.probes if isinstance(probe, CopyProbe)]
    if rates and run.result.provenance.get("copy_bytes_per_s") not in (None, *rates):
        wrong.append("copy_bytes_per_s is another in probes.jsonl")
    return wrong
