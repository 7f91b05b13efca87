"""The folder of a run: opened or gone on with, filled by whatever decodes, and closed with what it comes to."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from specalign import folders
from specalign.analysis.load_rows import load_rows
from specalign.analysis.summary import summarise
from specalign.analysis.verdict import MAX_BUSY, trust_checks
from specalign.benchmarks.config import BenchConfig, check, named_drafters
from specalign.benchmarks.preflight import UNTRUSTED, findings
from specalign.benchmarks.suite import Suite, checkpoint_hashes, data_facts
from specalign.chain import continued
from specalign.config import as_table, flat
from specalign.data.corpus import corpus_sha256
from specalign.errors import UserError
from specalign.files import file_sha256
from specalign.metrics import METRICS_VERSION
from specalign.models.probe import same_fingerprint
from specalign.preflight import require_passed
from specalign.probes import Probe
from specalign.provenance import BusyMeter, command
from specalign.records import GenerationRecord
from specalign.results import BenchmarkResult
from specalign.run_files import (
    PROBES_FILE,
    RECORDS_FILE,
    RESULT_FILE,
    probe_lines,
    read_probes,
    read_records,
    read_result,
    require_untouched,
    write_result,
)
from specalign.terminal import say

WARMUP_TOKENS = 8
"""Longest of the unrecorded generations with which a run begins."""
IDENTITY = (
    *("target", "data", "decoding", "drafter", "include", "compose", "copying", "seed", "device", "threads"),
    "engine",
)
"""Fields of the config that make two runs the same run."""


@dataclass(frozen=True)
class Decoding:
    """A run that is ready to begin, as an engine makes it of a config."""

    suite: Suite
    n_requested: int
    """Generations."""
    provenance: dict[str, Any]
    """What is known before the first generation."""
    measure: Callable[[], None]
    """Appends to records.jsonl and probes.jsonl what is not there yet."""
    judge: Callable[[Sequence[GenerationRecord]], Mapping[int, str]]
    """By ``order`` of the record: why a greedy output left the plain target's ("tie", "numeric" or what else)."""
    facts: Sequence[Probe] = ()
    """Probes made before the first generation."""


def fill(config: BenchConfig, begin: Callable[[BenchConfig], Decoding]) -> BenchmarkResult:
    """Run, or go on with, the suite of ``config`` in its output folder; returns the complete result.

    A complete run of the same config and checkpoints is returned as it is. Raises UserError where the folder
    holds another run, or another command writes into it. On Ctrl-C the result is written with status "interrupted"
    and the rows of what was made, and KeyboardInterrupt goes on.
    """
    check(config)
    with folders.hold(config.output, "specalign-bench"):
        return _fill(config, begin)


def _fill(config: BenchConfig, begin: Callable[[BenchConfig], Decoding]) -> BenchmarkResult:
    checkpoints = checkpoint_hashes(config)
    before = _existing(config, checkpoints)
    if before is not None and before.status == "complete":
        _require_whole(config, before)
        say(f"{config.output} is complete already; --overwrite runs it again")
        return before
    require_passed(findings(config, data=False))
    if config.threads:
        torch.set_num_threads(config.threads)  # with servers too: differences are judged here
    decoding = begin(config)
    _warn_of_others(decoding.provenance["hardware"]["busy_before"])
    result = _opening(config, decoding, checkpoints)
    _prepare(config, before, result)
    result = continued(before, result, config.output)
    append_probes(config.output, decoding.facts)
    write_result(config.output, result)
    load = BusyMeter()
    try:
        decoding.measure()
    except KeyboardInterrupt:
        write_result(config.output, _closing(_ended(result, "interrupted", load), decoding, config.output))
        raise
    result = _closing(_ended(result, "complete", load), decoding, config.output)
    write_result(config.output, result)
    return result


def _warn_of_others(taken: float) -> None:
    """Say before the time is spent what the report would say of a busy machine after it."""
    if taken > MAX_BUSY:
        say(f"specalign-bench: other processes take {taken:.0%} of the processor: {UNTRUSTED}", file=sys.stderr)


def append_probes(folder: Path, probes: Sequence[Probe]) -> None:
    """Add to the run's probes.jsonl."""
    with open(folder / PROBES_FILE, "a", encoding="utf-8") as file:
        file.write(probe_lines(probes))


def _existing(config: BenchConfig, checkpoints: dict[str, str]) -> BenchmarkResult | None:
    """The run in the output folder, if it is the same; None where there is none, or it is to be replaced."""
    folder = config.output
    if config.overwrite:
        folders.removable(folder, inputs(config))
        return None
    if not (folder / RESULT_FILE).exists():
        if not folders.is_empty(folder) and not (folder / folders.FILES).exists():
            raise UserError(f"{folder} exists and holds no benchmark run; choose another --output")
        return None
    result = read_result(folder)
    ours, theirs = flat(as_table(config)), flat(as_table(BenchConfig())) | flat(result.config)
    different = [key for key in IDENTITY if _part(ours, key) != _part(theirs, key)]
    recorded = result.provenance.get("checkpoints", {})
    different += [f"the weights of {name}" for name, now in checkpoints.items() if recorded.get(name) != now]
    if (corpus := config.copying.corpus) and corpus_sha256(corpus) != _corpus_of(result):
        different.append("the content of copying.corpus")
    if different:
        raise UserError(
            f"{folder} holds another run (it differs in {', '.join(different)}); "
            f"{folders.advice(folder, inputs(config))}"
        )
    return result


def _corpus_of(result: BenchmarkResult) -> str:
    return str(result.provenance.get("corpus", {}).get("sha256", ""))


def _part(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What a flat table has of one field; what an older specalign did not write is the default."""
    return {name: value for name, value in table.items() if name == key or name.startswith(f"{key}.")}


def inputs(config: BenchConfig) -> dict[str, str]:
    """What the config reads, by option: --overwrite never removes it."""
    drafters = {f"--drafter {name}": path for name, path in named_drafters(config).items()}
    suite = str(config.suite) if config.suite else ""
    return {
        "--suite": suite,
        "target.model": config.target.model,
        "data.source": config.data.source,
        **({"copying.corpus": config.copying.corpus} if config.copying.corpus else {}),
        **drafters,
    }


def _require_whole(config: BenchConfig, result: BenchmarkResult) -> None:
    """Raise UserError where a run that is called complete has lost its raw files."""
    try:
        require_untouched(config.output, result)
    except UserError as error:
        raise UserError(f"{error}; {folders.advice(config.output, inputs(config))}") from None


def _opening(config: BenchConfig, decoding: Decoding, checkpoints: dict[str, str]) -> BenchmarkResult:
    """The result of a run that has not begun, with the facts of its data in the provenance."""
    suite = decoding.suite
    return BenchmarkResult(
        status="running",
        suite=config.suite.stem if config.suite else "default",
        command=command(),
        config=as_table(config),
        provenance=decoding.provenance | {"checkpoints": checkpoints} | data_facts(suite),
        metrics_version=METRICS_VERSION,
        target=suite.target_info,
        drafters=suite.drafter_infos,
        n_requested=decoding.n_requested,
        n_effective=0,
        n_failed=0,
    )


def _prepare(config: BenchConfig, before: BenchmarkResult | None, result: BenchmarkResult) -> None:
    """Make the folder ready: a new or replaced run starts without records, an interrupted one keeps its own."""
    path = config.output / RECORDS_FILE
    if before is None:
        if config.overwrite:
            folders.clear(config.output, inputs(config))
        folders.begin(config.output)
        folders.add_all(config.output / name for name in (RECORDS_FILE, PROBES_FILE))
        path.write_bytes(b"")
        (config.output / PROBES_FILE).write_bytes(b"")
    elif before.provenance.get("prompts_sha256") != result.provenance["prompts_sha256"]:
        raise UserError(
            f"{config.output} was begun with other prompts: the data, the tokenizer or its chat template changed; "
            f"{folders.advice(config.output, inputs(config))}"
        )
    elif changed := _changed_models(before, result):
        raise UserError(
            f"{config.output} was begun with another model as {', '.join(changed)}: its logits on a few tokens differ; "
            f"{folders.advice(config.output, inputs(config))}"
        )
    else:
        _drop_broken_tail(path)
        _drop_broken_tail(config.output / PROBES_FILE)


def _changed_models(before: BenchmarkResult, now: BenchmarkResult) -> list[str]:
    """Methods whose model gives other logits than when the run was begun: a new revision, another config."""
    dtype = now.provenance.get("dtype", "")
    ours, theirs = now.provenance.get("fingerprints", {}), before.provenance.get("fingerprints", {})
    return [
        name
        for name, logits in ours.items()
        if name in theirs and not same_fingerprint(logits, theirs[name], dtype)
    ]


def _ended(
    result: BenchmarkResult, status: Literal["complete", "interrupted"], load: BusyMeter
) -> BenchmarkResult:
    """The result with how busy others kept the machine meanwhile."""
    hardware = result.provenance["hardware"] | {"busy_during": load.others()}
    return replace(result, status=status, provenance=result.provenance | {"hardware": hardware})


def _closing(result: BenchmarkResult, decoding: Decoding, folder: Path) -> BenchmarkResult:
    """What the records and probes come to."""
    path, probes_path = folder / RECORDS_FILE, folder / PROBES_FILE
    records, probes = list(read_records(path)), read_probes(probes_path)
    place = {method: index for index, method in enumerate(decoding.suite.drafters)}
    rows = summarise(records, decoding.judge(records), probes)
    rows.sort(key=lambda row: (row.temperature, place[row.method], row.gamma))
    statuses = [record.status for record in records]
    return replace(
        result,
        n_effective=statuses.count("ok"),
        n_failed=statuses.count("failed"),
        rows=rows,
        load=load_rows(probes),
        checks=trust_checks(result, records, rows, probes),
        records_sha256=file_sha256(path) if result.status == "complete" else "",
        probes_sha256=file_sha256(probes_path) if result.status == "complete" else "",
    )


def _drop_broken_tail(path: Path) -> None:
    """Cut off a last line that a crash left half-written; make the file where there is none."""
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    with open(path, "ab") as file:
        os.truncate(file.fileno(), end)
