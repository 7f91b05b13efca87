"""Running a suite on vLLM: the same prompts, records and result, with a server for each method and draft length."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from specalign.analysis.deploy import HEAD, speculative_config
from specalign.analysis.summary import divergent
from specalign.benchmarks.cells import Cell, judge_divergences, new_record, plan_cells
from specalign.benchmarks.config import BenchConfig, named_drafters, named_endpoints
from specalign.benchmarks.preflight import too_long
from specalign.benchmarks.prompts import Talks
from specalign.benchmarks.run_folder import WARMUP_TOKENS, Decoding, append_probes, fill
from specalign.benchmarks.suite import Suite, outline_suite
from specalign.chain import appending
from specalign.decoding.parallel import drafts_at_once
from specalign.errors import UserError, unknown
from specalign.folders import add
from specalign.models.load import load_model, resolve_device, resolve_dtype, resolve_model
from specalign.models.properties import eos_ids
from specalign.models.vocabulary import OLD_FILE
from specalign.probes import LoadProbe
from specalign.progress import progress_bar
from specalign.provenance import stamp
from specalign.records import DraftCounts, GenerationRecord, record_key
from specalign.results import TARGET, BenchmarkResult
from specalign.run_files import PROBES_FILE, RECORDS_FILE, read_probes, read_records
from specalign.serving.client import (
    Request,
    Server,
    complete,
    connect,
    difference,
    read_counts,
    settled_counts,
)
from specalign.serving.environment import vllm_python
from specalign.serving.load import measure_load
from specalign.serving.server import model_arguments, require_sampling, require_vllm, serving

SERVED_NAME = "target"

Kind = tuple[str, int]
"""(method, gamma): what one server serves."""


@dataclass(frozen=True)
class Engine:
    """Where the servers come from."""

    version: str
    arguments: tuple[str, ...]
    """Of the servers that we start."""
    python: str
    """Empty: all servers run already."""
    running: dict[Kind, Server]


def run_served(config: BenchConfig) -> BenchmarkResult:
    """As :func:`specalign.benchmarks.run_folder.fill`, decoded by vLLM.

    One request at a time, each method and draft length on a server of its own, one server after another; then
    the load tests on the same server. Raises UserError where vLLM is missing, too old, or does not start.
    """
    return fill(config, _begin)


def _begin(config: BenchConfig) -> Decoding:
    engine = _engine(config)
    suite = outline_suite(config)
    plan = _plan(suite, config, engine)
    return Decoding(
        suite,
        len(plan),
        _provenance(config, engine),
        measure=lambda: _measure(suite, config, plan, engine),
        judge=lambda records: _judged(config, suite, records),
    )


def _engine(config: BenchConfig) -> Engine:
    if config.engine.endpoint:
        return _running(config)
    python = vllm_python(config.engine.python)
    for path in named_drafters(config).values():
        if (Path(path) / OLD_FILE).exists():
            raise UserError(
                f"vLLM would take {Path(path) / OLD_FILE} for weights: move it to draft_vocabulary/ids.safetensors"
            )
    version = require_vllm(python)
    drafts = config.include or config.drafter
    if drafts and max(config.decoding.temperatures) > 0 and resolve_device(config.device).type == "cpu":
        require_sampling(python)
    return Engine(version, tuple(_arguments(config)), python, {})


def _arguments(config: BenchConfig) -> list[str]:
    """Prompts repeat under load: a prefix cache would answer them from memory."""
    dtype = resolve_dtype(config.target.dtype, resolve_device(config.device))
    trusted = config.target.trust_remote_code
    own = model_arguments(
        resolve_model(config.target.model), SERVED_NAME, str(dtype), trust_remote_code=trusted
    )
    return [*own, "--no-enable-prefix-caching", *shlex.split(config.engine.arguments)]


def _running(config: BenchConfig) -> Engine:
    """Each endpoint's draft length is read off its counters."""
    servers: dict[Kind, Server] = {}
    known = {TARGET, *config.include, *named_drafters(config)}
    for name, url in named_endpoints(config).items():
        if name not in known:
            raise unknown("endpoint's method", name, known)
        server = connect(url)
        counts = read_counts(server)
        if (counts is None) != (name == TARGET):
            raise UserError(
                f"the server at {url} {'drafts' if counts else 'does not draft'}: it is not {name!r}'s"
            )
        servers[name, len(counts.accepted_by_position) if counts else 0] = server
    return Engine(", ".join(sorted({server.version for server in servers.values()})), (), "", servers)


def _plan(suite: Suite, config: BenchConfig, engine: Engine) -> list[Cell]:
    """The run's generations, server by server, in random order on each."""
    gammas = {method: config.decoding.gammas if drafter else (0,) for method, drafter in suite.drafters.items()}
    if engine.running:
        gammas = {method: (gamma,) for method, gamma in engine.running}
    for method, drafter in suite.drafters.items():
        most, longest = drafts_at_once(drafter) if drafter else 1, max(gammas.get(method, (0,)))
        if 1 < most < longest:
            raise UserError(too_long(method, most, longest))
    place = {method: index for index, method in enumerate(suite.drafters)}
    shuffled = plan_cells(suite.prompts, gammas, config)
    ordered = sorted(shuffled, key=lambda cell: (place[cell.method], cell.gamma))
    return [dataclasses.replace(cell, order=order) for order, cell in enumerate(ordered)]


def _provenance(config: BenchConfig, engine: Engine) -> dict[str, Any]:
    device = resolve_device(config.device)
    stamped = stamp(str(device))
    return stamped | {
        "dtype": str(resolve_dtype(config.target.dtype, device)),
        "packages": {**stamped["packages"], "vllm": engine.version},
        "engine_environment": {name: value for name, value in os.environ.items() if name.startswith("VLLM_")},
    }


def _judged(config: BenchConfig, suite: Suite, records: Sequence[GenerationRecord]) -> dict[int, str]:
    """Differences between greedy outputs are judged by the target's own logits, in our engine."""
    if not divergent(records):
        return {}
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.target.dtype, device)
    trusted = config.target.trust_remote_code
    target = load_model(config.target.model, dtype=dtype, device=device, trust_remote_code=trusted)
    return judge_divergences(target, suite, records)


def _measure(suite: Suite, config: BenchConfig, plan: list[Cell], engine: Engine) -> None:
    """Server by server; what an interrupted run has already is not made again."""
    made = list(read_records(config.output / RECORDS_FILE))
    talks, done = suite.talks(made), {record_key(record) for record in made}
    loads = [probe for probe in read_probes(config.output / PROBES_FILE) if isinstance(probe, LoadProbe)]
    loaded = {(probe.method, probe.gamma, probe.concurrency) for probe in loads}
    with progress_bar("decoding with vLLM", len(plan)) as bar:
        for kind, group in groupby(plan, key=lambda cell: (cell.method, cell.gamma)):
            cells = list(group)
            missing = [cell for cell in cells if cell.key not in done]
            levels = [level for level in config.engine.concurrency if (*kind, level) not in loaded]
            bar.advance(len(cells) - len(missing))
            if not missing and not levels:
                continue
            with _server(suite, config, engine, kind) as server:
                _warm_up(suite, config, cells, server)
                _generate_all(suite, config, missing, server, talks, bar.advance)
                _load_all(suite, config, cells, levels, server)


@contextmanager
def _server(suite: Suite, config: BenchConfig, engine: Engine, kind: Kind) -> Iterator[Server]:
    if engine.running:
        yield engine.running[kind]
        return
    method, gamma = kind
    arguments = list(engine.arguments)
    if method != TARGET:
        arguments += ["--speculative-config", json.dumps(_speculative(suite, config, method, gamma))]
    log = config.output / f"vllm_{method}_{gamma}.log"
    add(log)
    with serving(engine.python, arguments, log) as server:
        yield server


def _speculative(suite: Suite, config: BenchConfig, method: str, gamma: int) -> dict[str, Any]:
    drafter = suite.drafters[method]
    assert drafter, "the plain target has a server of its own"
    path = named_drafters(config).get(method, "")
    kind, source = HEAD if drafter.reads else drafter.kind, resolve_model(path) if path else ""
    return speculative_config(kind, gamma, source, parallel=drafts_at_once(drafter) > 1)


def _warm_up(suite: Suite, config: BenchConfig, cells: Sequence[Cell], server: Server) -> None:
    """A short unrecorded completion at each temperature."""
    for cell in {cell.temperature: cell for cell in cells}.values():
        request = _request(suite, config, cell, cell.prompt.input_ids)
        complete(server, dataclasses.replace(request, max_new_tokens=WARMUP_TOKENS))


def _generate_all(
    suite: Suite, config: BenchConfig, cells: Sequence[Cell], server: Server, talks: Talks, advance: Any
) -> None:
    counts = settled_counts(server)
    with appending(config.output) as append:
        for cell in cells:
            record, counts = _generate_one(suite, config, cell, server, talks, counts)
            append(record)
            talks.add(record)
            advance()


def _generate_one(
    suite: Suite, config: BenchConfig, cell: Cell, server: Server, talks: Talks, before: DraftCounts | None
) -> tuple[GenerationRecord, DraftCounts | None]:
    """The record, and the counters after it. A server that is gone raises UserError."""
    input_ids = tuple[int, ...]()
    try:
        input_ids = talks.input_ids(cell.key)
        begun_at, begin = time.time(), time.perf_counter()
        answer = complete(server, _request(suite, config, cell, input_ids))
        call_s = time.perf_counter() - begin
    except (RuntimeError, ValueError) as error:
        connect(server.url)
        n = len(input_ids)
        failed = new_record(suite, config, cell, n_prompt_tokens=n, status="failed", error=str(error)[:500])
        return failed, settled_counts(server)
    after = settled_counts(server)
    counts = difference(after, before) if after and before else None
    record = new_record(
        suite,
        config,
        cell,
        n_prompt_tokens=len(input_ids),
        status="ok",
        token_ids=answer.token_ids,
        finish_reason=answer.finish_reason,
        text=answer.text.strip(),
        counts=counts,
        n_last=answer.n_last if counts and answer.n_parts == 1 + counts.n_drafts > 1 else None,
        prefill_s=answer.first_s,
        decode_s=answer.wall_s - answer.first_s,
        wall_s=answer.wall_s,
        begun_at=begun_at,
        call_s=call_s,
    )
    return record, after


def _load_all(
    suite: Suite, config: BenchConfig, cells: Sequence[Cell], levels: Sequence[int], server: Server
) -> None:
    first = config.decoding.temperatures[0]
    requests = [
        _request(suite, config, cell, cell.prompt.input_ids)
        for cell in cells
        if cell.temperature == first and not cell.repeat and not cell.turn
    ]
    for level in levels:
        probe = measure_load(server, requests, level, method=cells[0].method, gamma=cells[0].gamma)
        append_probes(config.output, [probe])


def _request(suite: Suite, config: BenchConfig, cell: Cell, input_ids: Sequence[int]) -> Request:
    return Request(
        input_ids,
        config.decoding.max_new_tokens,
        cell.temperature,
        config.decoding.top_k,
        config.decoding.top_p,
        cell.seed,
        eos_ids(suite.target.model),
    )
