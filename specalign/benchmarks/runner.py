"""Running a suite: every generation by one driver, each record on disk before the next begins."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch

from specalign.analysis.load_rows import load_rows
from specalign.analysis.summary import divergent, summarise
from specalign.analysis.verdict import trust_checks
from specalign.benchmarks.adaptive import adaptive_costs, with_adaptive
from specalign.benchmarks.config import BenchConfig
from specalign.benchmarks.measure import call_probes, fact_probes, output_probes
from specalign.benchmarks.preflight import findings
from specalign.benchmarks.suite import Cell, Suite, cells, checkpoint_hashes, is_adaptive, load_suite
from specalign.config import as_table
from specalign.decoding import Generation, ModelDrafter, generate
from specalign.decoding.divergence import classify_divergence
from specalign.decoding.verification import LOSSY
from specalign.errors import UserError
from specalign.files import file_sha256
from specalign.metrics import METRICS_VERSION
from specalign.preflight import require_passed
from specalign.probes import PROBES_FILE, CopyProbe, Probe, probe_lines, read_probes
from specalign.progress import progress_bar
from specalign.provenance import Load, stamp
from specalign.results import (
    ALONE,
    RECORDS_FILE,
    RESULT_FILE,
    TARGET,
    BenchmarkResult,
    GenerationRecord,
    StepTrace,
    read_records,
    read_result,
    record_line,
    write_result,
)

WARMUP_TOKENS = 8
PROBINGS = 12
"""Times that single calls are timed, each after one of three contexts, evenly spread over the generations of a run:
where the machine's speed changes, both see the same of it."""
TIE_TOLERANCE = 1e-4
"""Logits closer than this are a tie: rounding decides between them."""
FAILURES = (RuntimeError, ValueError)
"""What may go wrong with one generation: memory runs out, a prompt fills the context."""
IDENTITY = ("target", "data", "decoding", "drafter", "include", "seed", "device", "threads", "engine")
"""Fields of the config that make two runs the same run."""


def run(config: BenchConfig) -> BenchmarkResult:
    """Run, or go on with, the suite of ``config`` in its output folder; returns the complete result.

    A complete run of the same config and checkpoints is returned as it is. Raises UserError where the folder
    holds another run. On Ctrl-C the result is written with status "interrupted" and the rows of what was made,
    and KeyboardInterrupt goes on.
    """
    checkpoints = checkpoint_hashes(config)
    before = existing(config, checkpoints)
    if before is not None and before.status == "complete":
        print(f"{config.output} is complete already; --overwrite runs it again")
        return before
    if config.threads:
        torch.set_num_threads(config.threads)
    require_passed(findings(config, data=False))
    suite = with_adaptive(load_suite(config), config)
    plan = cells(suite, config)
    facts = fact_probes(suite)
    result = _opening(config, suite, plan, checkpoints, facts)
    prepare(config, before, result)
    add_probes(config, facts)
    return carry_out(
        config,
        result,
        measure=lambda: _measure(suite, config, plan),
        close=lambda found: closing(found, suite, config.output),
    )


def carry_out(
    config: BenchConfig,
    result: BenchmarkResult,
    *,
    measure: Callable[[], None],
    close: Callable[[BenchmarkResult], BenchmarkResult],
) -> BenchmarkResult:
    """Write the opening ``result``, measure, and write what it comes to; on Ctrl-C what it came to so far."""
    write_result(config.output, result)
    load = Load()
    try:
        measure()
    except KeyboardInterrupt:
        write_result(config.output, close(_ended(result, "interrupted", load)))
        raise
    result = close(_ended(result, "complete", load))
    write_result(config.output, result)
    return result


def _measure(suite: Suite, config: BenchConfig, plan: list[Cell]) -> None:
    path = config.output / RECORDS_FILE
    _generate_all(suite, config, plan, path)
    add_probes(config, output_probes(suite, config, list(read_records(path))))


def add_probes(config: BenchConfig, probes: list[Probe]) -> None:
    with open(config.output / PROBES_FILE, "a", encoding="utf-8") as file:
        file.write(probe_lines(probes))


def _ended(result: BenchmarkResult, status: Literal["complete", "interrupted"], load: Load) -> BenchmarkResult:
    """The result with how busy others kept the machine meanwhile."""
    hardware = result.provenance["hardware"] | {"busy_during": load.others()}
    return dataclasses.replace(result, status=status, provenance=result.provenance | {"hardware": hardware})


def existing(config: BenchConfig, checkpoints: dict[str, str]) -> BenchmarkResult | None:
    """The run in the output folder, if it is the same; None where there is none, or it is to be replaced."""
    folder = config.output
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another --output")
    if not (folder / RESULT_FILE).exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} exists and holds no benchmark run; choose another --output")
        return None
    if config.overwrite:
        return None
    result = read_result(folder)
    table, before_them = as_table(config), as_table(BenchConfig())
    different = [key for key in IDENTITY if result.config.get(key, before_them.get(key)) != table.get(key)]
    recorded = result.provenance.get("checkpoints", {})
    different += [f"the weights of {name}" for name, now in checkpoints.items() if recorded.get(name) != now]
    if different:
        raise UserError(
            f"{folder} holds another run (it differs in {', '.join(different)}); "
            "choose another --output, or --overwrite it"
        )
    return result


def prepare(config: BenchConfig, before: BenchmarkResult | None, result: BenchmarkResult) -> None:
    """Make the folder ready: a new or replaced run starts without records, an interrupted one keeps its own."""
    path = config.output / RECORDS_FILE
    if before is None:
        config.output.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        (config.output / PROBES_FILE).write_bytes(b"")
    elif before.provenance.get("prompts_sha256") != result.provenance["prompts_sha256"]:
        raise UserError(f"{config.output} was begun with other prompts: the data changed; --overwrite it")
    else:
        _drop_broken_tail(path)
        _drop_broken_tail(config.output / PROBES_FILE)


def _opening(
    config: BenchConfig, suite: Suite, plan: list[Cell], checkpoints: dict[str, str], facts: list[Probe]
) -> BenchmarkResult:
    """What is known before the first generation."""
    provenance = {
        "attention": suite.target.model.config._attn_implementation,
        "dtype": str(suite.target.model.dtype),
        "runtime": suite.target.runtime,
        "adaptive_costs": adaptive_costs(suite),
        "checkpoints": checkpoints,
        "copy_bytes_per_s": next(probe.bytes_per_s for probe in facts if isinstance(probe, CopyProbe)),
    }
    return opening(config, suite, plan, stamp(str(suite.target.device)) | provenance)


def opening(config: BenchConfig, suite: Suite, plan: list[Cell], provenance: dict[str, Any]) -> BenchmarkResult:
    """The result of a run that has not begun, with the facts of its data in the provenance."""
    return BenchmarkResult(
        status="running",
        suite=config.suite.stem if config.suite else "default",
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
        config=as_table(config),
        provenance=provenance | _data_facts(suite),
        metrics_version=METRICS_VERSION,
        target=suite.target_info,
        drafters=suite.drafter_infos,
        n_requested=len(plan),
        n_effective=0,
        n_failed=0,
    )


def _data_facts(suite: Suite) -> dict[str, Any]:
    cut = [prompt.n_truncated for prompt in suite.prompts if prompt.n_truncated]
    return {
        "n_prompts": len(suite.prompts),
        "n_truncated_prompts": len(cut),
        "n_truncated_tokens": sum(cut),
        "prompts_sha256": hashlib.sha256(repr(suite.prompts).encode()).hexdigest(),
    }


def closing(result: BenchmarkResult, suite: Suite, folder: Path) -> BenchmarkResult:
    """What the records and probes come to."""
    path, probes_path = folder / RECORDS_FILE, folder / PROBES_FILE
    records = list(read_records(path))
    place = {method: index for index, method in enumerate(suite.drafters)}
    probes = read_probes(probes_path)
    rows = summarise(records, _judge_divergences(suite, records), probes)
    rows.sort(key=lambda row: (row.temperature, place[row.method], row.gamma))
    statuses = [record.status for record in records]
    return dataclasses.replace(
        result,
        n_effective=statuses.count("ok"),
        n_failed=statuses.count("failed"),
        rows=rows,
        load=load_rows(probes),
        checks=trust_checks(result, records, rows, probes),
        records_sha256=file_sha256(path) if result.status == "complete" else "",
        probes_sha256=file_sha256(probes_path) if result.status == "complete" else "",
    )


def _judge_divergences(suite: Suite, records: list[GenerationRecord]) -> dict[int, str]:
    """By ``order`` of the record: why a greedy output left the plain target's."""
    prompts = {prompt.id: prompt.input_ids for prompt in suite.prompts}
    return {
        ours.order: classify_divergence(
            suite.target.model,
            prompts[ours.prompt_id],
            ours.token_ids,
            theirs.token_ids,
            tolerance=TIE_TOLERANCE,
        )
        for ours, theirs in divergent(records)
    }


def _generate_all(suite: Suite, config: BenchConfig, plan: list[Cell], path: Path) -> None:
    """Make what is still missing, in the plan's order; time single calls in between, as the machine changes."""
    done = {record_key(record) for record in read_records(path)}
    missing = [cell for cell in plan if cell.key not in done]
    probings: dict[int, list[int]] = defaultdict(list)
    for number in range(PROBINGS):
        probings[number * len(plan) // PROBINGS].append(number)
    _warm_up(suite, config, missing)
    with (
        _frozen_heap(),
        open(path, "a", encoding="utf-8") as file,
        progress_bar("decoding", len(plan)) as bar,
    ):
        bar.advance(len(done))
        for cell in missing:
            for number in probings.get(cell.order, ()):
                with _no_garbage_collection():
                    add_probes(config, call_probes(suite, config, number))
            file.write(record_line(_generate_one(suite, config, cell)))
            file.flush()
            bar.advance()


def _warm_up(suite: Suite, config: BenchConfig, missing: list[Cell]) -> None:
    """A short unrecorded generation by each method, at each temperature and gamma.

    Failures are left to the generations themselves, which record them.
    """
    kinds = {(cell.method, cell.temperature, cell.gamma): cell for cell in missing}
    with progress_bar("warming up", len(kinds)) as bar:
        for cell in kinds.values():
            with suppress(*FAILURES):
                _decode(suite, config, cell, max_new_tokens=min(WARMUP_TOKENS, config.decoding.max_new_tokens))
            bar.advance()


def _generate_one(suite: Suite, config: BenchConfig, cell: Cell) -> GenerationRecord:
    """A generation that fails becomes a record of its failure."""
    load = Load()
    try:
        with _no_garbage_collection():
            done = _decode(suite, config, cell, max_new_tokens=config.decoding.max_new_tokens)
    except FAILURES as error:
        reason = f"{type(error).__name__}: {error}"
        return new_record(suite, config, cell, status="failed", error=reason[:500])
    busy = load.others()
    (ids,) = done.token_ids
    return new_record(
        suite,
        config,
        cell,
        status="ok",
        token_ids=ids,
        finish_reason=done.finish_reason[0],
        text=str(suite.tokenizer.decode(ids, skip_special_tokens=True)).strip(),
        steps=_trace(done),
        prefill_s=done.prefill_s,
        decode_s=done.decode_s,
        wall_s=done.wall_s,
        busy=busy,
    )


def _decode(suite: Suite, config: BenchConfig, cell: Cell, *, max_new_tokens: int) -> Generation:
    stepper, drafter = suite.target, suite.drafters[cell.method]
    if isinstance(drafter, ModelDrafter) and cell.gamma == 0:  # on its own
        stepper, drafter = drafter.ready, None
    return generate(
        stepper,
        drafter,
        cell.prompt.input_ids,
        gamma=cell.gamma,
        temperature=cell.temperature,
        top_k=config.decoding.top_k,
        top_p=config.decoding.top_p,
        max_new_tokens=max_new_tokens,
        rule=config.decoding.rule,
        generator=torch.Generator(suite.target.device).manual_seed(cell.seed),
    )


def new_record(suite: Suite, config: BenchConfig, cell: Cell, **outcome: Any) -> GenerationRecord:
    plain = cell.method == TARGET
    alone = cell.gamma == 0 and not plain
    rule = "none" if plain else ALONE if alone else "greedy" if cell.temperature == 0 else config.decoding.rule
    return GenerationRecord(
        method=cell.method,
        prompt_id=cell.prompt.id,
        category=cell.prompt.category,
        repeat=cell.repeat,
        order=cell.order,
        temperature=cell.temperature,
        top_k=config.decoding.top_k,
        top_p=config.decoding.top_p,
        gamma=cell.gamma,
        adaptive=is_adaptive(suite.drafters[cell.method]),
        rule=rule,
        lossless=not alone and rule not in LOSSY,
        seed=cell.seed,
        n_prompt_tokens=len(cell.prompt.input_ids),
        reference=cell.prompt.reference,
        **outcome,
    )


def _trace(done: Generation) -> StepTrace:
    (steps,) = done.steps
    return StepTrace(
        n_drafted=[step.n_drafted for step in steps],
        n_examined=[step.n_examined for step in steps],
        n_accepted=[step.n_accepted for step in steps],
        n_emitted=[step.n_emitted for step in steps],
        overlap=[list(step.overlap) for step in steps],
        draft_s=[step.draft_s for step in steps],
        verify_s=[step.verify_s for step in steps],
        rest_s=[step.rest_s for step in steps],
    )


def record_key(record: GenerationRecord) -> tuple[str, str, float, int, int]:
    return record.prompt_id, record.method, record.temperature, record.gamma, record.repeat


def _drop_broken_tail(path: Path) -> None:
    """Cut off a last line that a crash left half-written; make the file where there is none."""
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    with open(path, "ab") as file:
        os.truncate(file.fileno(), end)


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Let the collections between generations skip what was there before: the models and the libraries."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
