"""Running a suite: every generation by one driver, each record on disk before the next begins."""

from __future__ import annotations

import dataclasses
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from specalign.benchmarks.checks import trust_checks
from specalign.benchmarks.comparison import divergent, summarise
from specalign.benchmarks.config import TARGET, BenchConfig
from specalign.benchmarks.suite import Cell, Suite, cells, load_suite
from specalign.config import as_table
from specalign.decoding import Generation, generate
from specalign.decoding.divergence import classify_divergence
from specalign.errors import UserError
from specalign.metrics import METRICS_VERSION
from specalign.progress import progress_bar
from specalign.provenance import file_sha256, stamp
from specalign.results import (
    RECORDS_FILE,
    RESULT_FILE,
    BenchmarkResult,
    GenerationRecord,
    StepTrace,
    read_records,
    read_result,
    record_line,
    write_result,
)

WARMUP_TOKENS = 8
TIE_TOLERANCE = 1e-4
"""Logits closer than this are a tie: rounding decides between them."""
IDENTITY = ("target", "data", "decoding", "drafter", "include", "seed", "device", "threads")
"""Fields of the config that make two runs the same run."""


def run(config: BenchConfig) -> BenchmarkResult:
    """Run, or go on with, the suite of ``config`` in its output folder; returns the complete result.

    A complete run of the same config is returned as it is. Raises UserError where the folder holds another
    run. On Ctrl-C the result is written with status "interrupted", and KeyboardInterrupt goes on.
    """
    before = _existing(config)
    if before is not None and before.status == "complete":
        print(f"{config.output} is complete already; --overwrite runs it again")
        return before
    if config.threads:
        torch.set_num_threads(config.threads)
    suite = load_suite(config)
    plan = cells(suite, config)
    result = _opening(config, suite, len(plan))
    path = config.output / RECORDS_FILE
    _drop_broken_tail(path)
    write_result(config.output, result)
    try:
        _generate_all(suite, config, plan, path)
    except KeyboardInterrupt:
        write_result(
            config.output, _counted(dataclasses.replace(result, status="interrupted"), read_records(path))
        )
        raise
    result = _closing(result, suite, path)
    write_result(config.output, result)
    return result


def _existing(config: BenchConfig) -> BenchmarkResult | None:
    """The run in the output folder, if it is of the same config. Another one is refused, or removed if asked."""
    folder = config.output
    ours = (folder / RESULT_FILE, folder / RECORDS_FILE)
    if config.overwrite:
        for file in ours:
            file.unlink(missing_ok=True)
    if not ours[0].exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} exists and holds no benchmark run; choose another --output")
        folder.mkdir(parents=True, exist_ok=True)
        return None
    result = read_result(folder)
    table = as_table(config)
    different = [key for key in IDENTITY if result.config.get(key) != table.get(key)]
    if different:
        raise UserError(
            f"{folder} holds another run (it differs in {', '.join(different)}); "
            "choose another --output, or --overwrite it"
        )
    return result


def _opening(config: BenchConfig, suite: Suite, n_requested: int) -> BenchmarkResult:
    """What is known before the first generation."""
    return BenchmarkResult(
        status="running",
        suite=config.suite.stem if config.suite else "default",
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
        config=as_table(config),
        provenance=stamp(str(suite.target.device)) | _truncation(suite) | {"dtype": str(suite.target.dtype)},
        metrics_version=METRICS_VERSION,
        target=suite.target_info,
        drafters=suite.drafter_infos,
        n_requested=n_requested,
        n_effective=0,
        n_failed=0,
    )


def _truncation(suite: Suite) -> dict[str, Any]:
    cut = [prompt.n_truncated for prompt in suite.prompts if prompt.n_truncated]
    return {"n_prompts": len(suite.prompts), "n_truncated_prompts": len(cut), "n_truncated_tokens": sum(cut)}


def _closing(result: BenchmarkResult, suite: Suite, path: Path) -> BenchmarkResult:
    records = list(read_records(path))
    place = {method: index for index, method in enumerate(suite.drafters)}
    rows = summarise(records, _judge_divergences(suite, records))
    rows.sort(key=lambda row: (row.temperature, place[row.method], row.gamma))
    complete = dataclasses.replace(
        result,
        status="complete",
        rows=rows,
        checks=trust_checks(result, records, rows),
        records_sha256=file_sha256(path),
    )
    return _counted(complete, records)


def _judge_divergences(suite: Suite, records: list[GenerationRecord]) -> dict[int, bool]:
    """By ``order`` of the record: whether a greedy output left the plain target's at a tie."""
    prompts = {prompt.id: prompt.input_ids for prompt in suite.prompts}
    return {
        ours.order: classify_divergence(
            suite.target, prompts[ours.prompt_id], ours.token_ids, theirs.token_ids, tolerance=TIE_TOLERANCE
        )
        == "tie"
        for ours, theirs in divergent(records)
    }


def _counted(result: BenchmarkResult, records: Iterable[GenerationRecord]) -> BenchmarkResult:
    statuses = [record.status for record in records]
    return dataclasses.replace(result, n_effective=statuses.count("ok"), n_failed=statuses.count("failed"))


def _generate_all(suite: Suite, config: BenchConfig, plan: list[Cell], path: Path) -> None:
    """Make what is still missing, in the plan's order."""
    done = {_key(record) for record in read_records(path)}
    missing = [cell for cell in plan if cell.key not in done]
    with progress_bar("warming up", len(suite.drafters)) as bar:
        _warm_up(suite, config, missing, bar.advance)
    with open(path, "a", encoding="utf-8") as file, progress_bar("decoding", len(plan)) as bar:
        bar.advance(len(done))
        for cell in missing:
            file.write(record_line(_generate_one(suite, config, cell)))
            file.flush()
            bar.advance()


def _warm_up(suite: Suite, config: BenchConfig, missing: list[Cell], advance: Callable[[], None]) -> None:
    """A short unrecorded generation by each method, at each temperature and gamma."""
    kinds = {(cell.method, cell.temperature, cell.gamma): cell for cell in missing}
    for cell in kinds.values():
        _decode(suite, config, cell, max_new_tokens=min(WARMUP_TOKENS, config.decoding.max_new_tokens))
        advance()


def _generate_one(suite: Suite, config: BenchConfig, cell: Cell) -> GenerationRecord:
    """A generation that fails becomes a record of its failure."""
    try:
        with _no_garbage_collection():
            done = _decode(suite, config, cell, max_new_tokens=config.decoding.max_new_tokens)
    except (RuntimeError, ValueError) as error:  # out of memory, a prompt that fills the context
        reason = f"{type(error).__name__}: {error}"
        return _record(suite, config, cell, status="failed", error=reason[:500])
    (ids,) = done.token_ids
    return _record(
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
    )


def _decode(suite: Suite, config: BenchConfig, cell: Cell, *, max_new_tokens: int) -> Generation:
    return generate(
        suite.target,
        suite.drafters[cell.method],
        cell.prompt.input_ids,
        gamma=cell.gamma,
        temperature=cell.temperature,
        top_k=config.decoding.top_k,
        top_p=config.decoding.top_p,
        max_new_tokens=max_new_tokens,
        rule=config.decoding.rule,
        generator=torch.Generator(suite.target.device).manual_seed(cell.seed),
    )


def _record(suite: Suite, config: BenchConfig, cell: Cell, **outcome: Any) -> GenerationRecord:
    plain = cell.method == TARGET
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
        rule="none" if plain else "greedy" if cell.temperature == 0 else config.decoding.rule,
        lossless=True,
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


def _key(record: GenerationRecord) -> tuple[str, str, float, int, int]:
    return record.prompt_id, record.method, record.temperature, record.gamma, record.repeat


def _drop_broken_tail(path: Path) -> None:
    """Cut off a last line that a crash left half-written; make the file where there is none."""
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    with open(path, "ab") as file:
        os.truncate(file.fileno(), end)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
