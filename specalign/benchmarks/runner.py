"""Running a suite: every generation by one driver, each record on disk before the next begins."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch

from specalign.benchmarks.adaptive import adaptive_costs, with_costs
from specalign.benchmarks.calls import call_probes, fact_probes
from specalign.benchmarks.cells import Cell, cells, judge_divergences, new_record
from specalign.benchmarks.config import BenchConfig
from specalign.benchmarks.copied import Copied, Corpus, read_corpus
from specalign.benchmarks.learned import Learned, drafted_by
from specalign.benchmarks.outputs import output_probes
from specalign.benchmarks.prompts import Talks
from specalign.benchmarks.run_folder import WARMUP_TOKENS, Decoding, append_probes, fill
from specalign.benchmarks.suite import Suite, fingerprints, load_suite
from specalign.chain import appending
from specalign.decoding import Drafter, Generation, generate
from specalign.probes import CopyProbe
from specalign.progress import progress_bar
from specalign.provenance import BusyMeter, stamp
from specalign.records import GenerationRecord, StepTrace, record_key
from specalign.results import BenchmarkResult
from specalign.run_files import RECORDS_FILE, read_records

PROBINGS = 12
"""Times that single calls are timed, each after one of three contexts, evenly spread over the generations of a run:
where the machine's speed changes, both see the same of it."""
FAILURES = (RuntimeError, ValueError)
"""What may go wrong with one generation: memory runs out, a prompt fills the context."""


def run(config: BenchConfig) -> BenchmarkResult:
    """Run, or go on with, the suite of ``config`` in its output folder, decoded here; as :func:`run_folder.fill`."""
    return fill(config, _begin)


def _begin(config: BenchConfig) -> Decoding:
    suite = with_costs(load_suite(config), config)
    plan = cells(suite, config)
    facts = fact_probes(suite)
    corpus = read_corpus(config.copying, suite.tokenizer)
    provenance = {
        "attention": suite.target.model.config._attn_implementation,
        "dtype": str(suite.target.model.dtype),
        "runtime": suite.target.runtime,
        "adaptive_costs": adaptive_costs(suite),
        "fingerprints": fingerprints(suite),
        "copy_bytes_per_s": next(probe.bytes_per_s for probe in facts if isinstance(probe, CopyProbe)),
    } | ({"corpus": corpus.facts} if corpus else {})
    return Decoding(
        suite,
        len(plan),
        stamp(str(suite.target.device)) | provenance,
        measure=lambda: _measure(suite, config, plan, corpus),
        judge=lambda records: judge_divergences(suite.target.model, suite, records),
        facts=facts,
    )


def _measure(suite: Suite, config: BenchConfig, plan: list[Cell], corpus: Corpus | None) -> None:
    path = config.output / RECORDS_FILE
    _generate_all(suite, config, plan, corpus)
    append_probes(config.output, output_probes(suite, config, list(read_records(path))))


def _generate_all(suite: Suite, config: BenchConfig, plan: list[Cell], corpus: Corpus | None) -> None:
    """Make what is still missing, in the plan's order; time single calls in between, as the machine changes."""
    made = list(read_records(config.output / RECORDS_FILE))
    talks, done = suite.talks(made), {record_key(record) for record in made}
    copied, learned = Copied(config.copying, corpus, made), Learned(suite.drafters, made)
    missing = [cell for cell in plan if cell.key not in done]
    probings: dict[int, list[int]] = defaultdict(list)
    for number in range(PROBINGS):
        probings[number * len(plan) // PROBINGS].append(number)
    _warm_up(suite, config, missing)
    with (
        _frozen_heap(),
        appending(config.output) as append,
        progress_bar("decoding", len(plan)) as bar,
    ):
        bar.advance(len(done))
        for cell in missing:
            for number in probings.get(cell.order, ()):
                with _no_garbage_collection():
                    append_probes(config.output, call_probes(suite, config, number))
            drafter = learned.of(cell)
            drafter = copied.beside(drafter, cell) if drafter else None
            record = _generate_one(suite, config, cell, talks, drafter)
            append(record)
            for each in (talks, copied, learned):
                each.add(record)
            bar.advance()


def _warm_up(suite: Suite, config: BenchConfig, missing: list[Cell]) -> None:
    """A short unrecorded generation by each method, at each temperature and gamma.

    Failures are left to the generations themselves, which record them.
    """
    kinds = {(cell.method, cell.temperature, cell.gamma): replace(cell, turn=0) for cell in missing}
    with progress_bar("warming up", len(kinds)) as bar:
        for cell in kinds.values():
            with suppress(*FAILURES):
                n_new = min(WARMUP_TOKENS, config.decoding.max_new_tokens)
                _decode(suite, config, cell, cell.prompt.input_ids, n_new, suite.drafters[cell.method])
            bar.advance()


def _generate_one(
    suite: Suite, config: BenchConfig, cell: Cell, talks: Talks, drafter: Drafter | None
) -> GenerationRecord:
    """A generation that fails becomes a record of its failure."""
    load, input_ids = BusyMeter(), tuple[int, ...]()
    try:
        input_ids = talks.input_ids(cell.key)
        with _no_garbage_collection():
            begun_at, begin = time.time(), time.perf_counter()
            done = _decode(suite, config, cell, input_ids, config.decoding.max_new_tokens, drafter)
            call_s = time.perf_counter() - begin
    except FAILURES as error:
        reason = f"{type(error).__name__}: {error}"
        return new_record(
            suite, config, cell, n_prompt_tokens=len(input_ids), status="failed", error=reason[:500]
        )
    busy = load.others()
    (ids,) = done.token_ids
    return new_record(
        suite,
        config,
        cell,
        n_prompt_tokens=len(input_ids),
        status="ok",
        token_ids=ids,
        finish_reason=done.finish_reason[0],
        text=str(suite.tokenizer.decode(ids, skip_special_tokens=True)).strip(),
        steps=_trace(done),
        drafted_by=drafted_by(done.steps[0]),
        prefill_s=done.prefill_s,
        decode_s=done.decode_s,
        wall_s=done.wall_s,
        busy=busy,
        begun_at=begun_at,
        call_s=call_s,
    )


def _decode(
    suite: Suite,
    config: BenchConfig,
    cell: Cell,
    input_ids: tuple[int, ...],
    max_new_tokens: int,
    drafter: Drafter | None,
) -> Generation:
    stepper = suite.target
    if drafter and drafter.alone and cell.gamma == 0:
        stepper, drafter = drafter.alone, None
    return generate(
        stepper,
        drafter,
        input_ids,
        gamma=cell.gamma,
        temperature=cell.temperature,
        top_k=config.decoding.top_k,
        top_p=config.decoding.top_p,
        max_new_tokens=max_new_tokens,
        rule=config.decoding.rule,
        generator=torch.Generator(suite.target.device).manual_seed(cell.seed),
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
