"""What a benchmark run leaves on disk: one record a generation, one result a run.

`records.jsonl` is the raw truth, one :class:`GenerationRecord` a line, in execution order; `result.json` is
one :class:`BenchmarkResult`. `probes.jsonl` (``specalign/probes.py``) holds what was measured besides. Every
figure of a report can be recomputed from the records and probes alone.
Units stand in the names: ``_s`` seconds, ``n_`` counts. Notation as in ``specalign/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_json

from specalign.errors import UserError
from specalign.files import byte_lines, read_text, write_text

SCHEMA_VERSION = 2
"""2: records have ``begun_at``, ``call_s`` and ``chain``. Files of version 1 are read."""
RECORDS_FILE = "records.jsonl"
RESULT_FILE = "result.json"
TARGET, LOOKUP = "target", "prompt_lookup"
LOOKUPS = (LOOKUP, "suffix_lookup")
"""Drafters that need no model: they copy."""
"""Values of ``method``: plain decoding, and drafting from the prompt; a drafter's name otherwise."""
ADAPTIVE = "_adaptive"
"""End of the name of a drafter that decodes at adaptive draft lengths beside its own row."""
ALONE = "alone"
"""Value of ``rule`` in records in which a drafter decodes on its own."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
T = TypeVar("T")


@dataclass(frozen=True)
class StepTrace:
    """The decoding steps of one generation, one entry a step (that is, a target call), column by column.

    Plain decoding has the same columns with nothing drafted. In every step
    ``n_accepted <= n_examined <= n_drafted`` and ``n_emitted`` is ``n_accepted`` plus the target's own
    token (bonus or correction), unless the step ended the sequence before that token.
    """

    n_drafted: list[int]
    """Tokens that the drafter proposed."""
    n_examined: list[int]
    """Drafted tokens that the rule looked at: up to and including the first rejected one."""
    n_accepted: list[int]
    """Drafted tokens that were accepted and emitted."""
    n_emitted: list[int]
    """Tokens that the step added to the output."""
    overlap: list[list[float]]
    """Sum over the vocabulary of min(p, q) at each examined position, at the temperature used."""
    draft_s: list[float]
    """Seconds in the drafter."""
    verify_s: list[float]
    """Seconds in the target's forward call."""
    rest_s: list[float]
    """Seconds in everything else: sampling, the rule, cache bookkeeping, Python."""
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class DraftCounts:
    """What a serving engine counts, of one generation or of many, where it gives no trace of its steps.

    Tokens that were accepted in the last step but lie beyond the end of the output are counted too.
    """

    n_drafts: int
    """Drafts: steps in which something was drafted."""
    n_drafted: int
    """Drafted tokens, those after a rejection included."""
    n_accepted: int
    accepted_by_position: list[int]
    """Drafts whose first i tokens were accepted, i = 1..gamma."""
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class GenerationRecord:
    """One generation: what was asked, what came out, and where the time went."""

    method: str
    """Row label: "target" for plain decoding, else the drafter's name."""
    prompt_id: str
    category: str
    repeat: int
    """0-based index of this repetition of (prompt, method, temperature, gamma)."""
    order: int
    """0-based position in the run's (randomised) execution order."""
    temperature: float
    top_k: int
    """0: no top-k filter."""
    top_p: float
    """1: no top-p filter."""
    gamma: int
    """Draft length, the most where it is adaptive; 0 for plain decoding."""
    rule: str
    """Verification rule; "none" for plain decoding."""
    lossless: bool
    seed: int
    n_prompt_tokens: int
    status: Literal["ok", "failed"]
    error: str = ""
    """Why it failed; a failed generation has no steps and enters no mean."""
    token_ids: list[int] = field(default_factory=list)
    """The new tokens, without the prompt; a final end-of-sequence token is included."""
    finish_reason: Literal["eos", "length", ""] = ""
    text: str = ""
    reference: str = ""
    """The data set's reference; empty where there is none."""
    steps: StepTrace | None = None
    """None where it failed, and from an engine that gives no trace of its steps."""
    counts: DraftCounts | None = None
    """Such an engine's counters."""
    n_last: int | None = None
    """Tokens of its last step that are in the output; None where the stream did not show the steps one by one."""
    prefill_s: float = 0.0
    """Seconds for the prompt: target and drafter prefill, up to the first token."""
    decode_s: float = 0.0
    """Seconds from the first token to the last."""
    wall_s: float = 0.0
    """Seconds for the whole call; prefill_s + decode_s and what little lies between."""
    adaptive: bool = False
    """Whether each draft ended where a further token was not expected to pay."""
    hybrid: bool = False
    """Whether several drafters take turns under this name."""
    busy: float | None = None
    """Share of the processor's time that other processes took meanwhile, 0 to 1; None where that is not known."""
    begun_at: float | None = None
    """Seconds since 1970 when the call began."""
    call_s: float | None = None
    """Seconds of the call by a clock outside the engine; wall_s and what little lies around it."""
    schema_version: int = SCHEMA_VERSION
    chain: str = ""
    """Hash of this line and all before it (specalign/chain.py)."""
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % confidence interval; bounds are None where none can be computed."""

    value: float
    low: float | None = None
    high: float | None = None
    __pydantic_config__ = _STRICT


Alphabet = Literal["ascii", "unicode"]


@dataclass(frozen=True)
class Rouge:
    """ROUGE F1 scores, each in 0..1."""

    rouge1: Interval
    rouge2: Interval
    rougeL: Interval
    rougeLsum: Interval | None = None
    """Longest common subsequences sentence by sentence; None in results before this figure was added."""
    words: Alphabet = "ascii"
    """What a word is made of: letters of every script, or, in results before these were read, ASCII ones alone."""
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class TimeSplit:
    """Mean milliseconds of one decoding step by kind, None without traces of steps; prefill is per generation."""

    prefill_ms: float
    draft_ms: float | None
    verify_ms: float | None
    rest_ms: float | None
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class SummaryRow:
    """What one (method, temperature, gamma) came to. None: does not apply, or could not be computed."""

    method: str
    kind: Literal["target", "lookup", "model", "hybrid"]
    temperature: float
    gamma: int
    rule: str
    lossless: bool
    n_requested: int
    n_effective: int
    n_failed: int
    tokens_per_s: Interval
    """Tokens over whole-call seconds, pooled."""
    ms_per_token: float
    speedup: Interval | None
    """Target's seconds per token over this method's at the target's output lengths, paired by prompt."""
    decode_speedup: Interval | None
    """The same over decode seconds alone."""
    time: TimeSplit
    speedup_joint: Interval | None = None
    """speedup with bounds that hold for all rows of the run at once; without them where prompts are too few."""
    speedup_p: float | None = None
    """p-value that the speed-up is 1, adjusted for all rows of the run."""
    whole_speedup: Interval | None = None
    """speedup over whole requests at their own lengths, which confounds it with chance in lengths when sampling."""
    adaptive: bool = False
    """Whether gamma is only the longest draft; the cost model's figures for one fixed length do not apply then."""
    latency_p50_ms: float | None = None
    """Median over decoded tokens of the milliseconds of the step that emitted it over the step's tokens."""
    latency_p95_ms: float | None = None
    """95th percentile of the same."""
    alpha_expected: Interval | None = None
    """Mean over examined positions of sum_v min(p, q)."""
    alpha_counted: Interval | None = None
    """Accepted over examined."""
    accepted_per_drafted: Interval | None = None
    """Accepted over drafted (vLLM's figure)."""
    tau: Interval | None = None
    """Block efficiency: emitted tokens per target call, bonus token included, pooled."""
    tau_by_request: float | None = None
    """The same as a mean over generations of each one's own tokens per target call."""
    acceptance_by_position: list[float | None] = field(default_factory=list)
    """Accepted over examined at draft position 1..gamma."""
    survival_by_position: list[float | None] = field(default_factory=list)
    """Share of drafts whose first i tokens were all accepted, i = 1..gamma."""
    accepted_histogram: list[int] = field(default_factory=list)
    """Number of steps with 0..gamma accepted tokens."""
    c: float | None = None
    """T_draft(1) / T_target(1), measured in this run."""
    verify_ratio: float | None = None
    """T_target(gamma + 1) / T_target(1), measured in this run."""
    break_even_alpha: float | None = None
    """The i.i.d. acceptance rate at which decoding would be as fast as the plain target."""
    break_even_c: float | None = None
    """The T_draft(1) / T_target(1) at which it would be, at the measured tau; None: even free drafts do not pay."""
    predicted_speedup: float | None = None
    """Decode speed-up that the survival curve and the medians of the run's own steps give."""
    predicted_from_probes: float | None = None
    """The same from call times that were measured apart, at several context lengths."""
    leviathan_speedup: float | None = None
    """Theorem 3.8 of Leviathan et al. at alpha_counted and c: acceptance i.i.d., verification free, no overhead."""
    alpha_teacher_forced: Interval | None = None
    """Mean of sum_v min(p, q) over every position of the plain target's outputs."""
    mbsu: float | None = None
    """Memory-bound speed-up: tau / (gamma c + 1), c being drafter's over target's bytes a step."""
    flop_ratio: float | None = None
    """Multiplications per emitted token over the plain target's."""
    ceiling_tokens_per_s: float | None = None
    """Decoded tokens per second if every step took only the time to read its weights at copy bandwidth."""
    bandwidth_utilisation: float | None = None
    """Share of the decode seconds that reading the weights at copy bandwidth takes."""
    rouge_vs_reference: Rouge | None = None
    rouge_vs_target: Rouge | None = None
    rouge_alone: Rouge | None = None
    """The drafter decoding on its own, against the reference."""
    accuracy: Interval | None = None
    """Share of generations whose last number is the reference's answer (references that end in "#### number")."""
    accuracy_alone: Interval | None = None
    """The same of the drafter decoding on its own."""
    exact_match_target: float | None = None
    """Share of generations whose tokens equal the plain target's (meaningful at temperature 0)."""
    n_tie_divergences: int = 0
    """Greedy generations that leave the target's at a top-2 tie within the stated tolerance."""
    n_numeric_divergences: int = 0
    """Greedy generations that leave it where the target's own logits change order between ways to compute them."""
    n_unexplained_divergences: int = 0
    """Greedy generations that leave it anywhere else: a bug."""
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class LoadRow:
    """What a server gave one method under load: so many requests at a time, one following another's end."""

    method: str
    gamma: int
    concurrency: int
    """Requests at a time."""
    n_requests: int
    n_failed: int
    tokens_per_s: float
    """Tokens of all requests over the seconds from the first request to the last answer."""
    ttft_ms: list[float]
    """Milliseconds to the first token, over requests: p50, p95, p99."""
    tpot_ms: list[float]
    """Milliseconds a token after the first, over requests: p50, p95, p99."""
    request_tokens_per_s: list[float]
    """Tokens over whole seconds of a request, over requests: p50, p95, p99."""
    speedup: float | None = None
    """tokens_per_s over the plain target's at the same concurrency; None for the target itself, or without it."""
    decode_speedup: float | None = None
    """The plain target's seconds a token after the first over this row's, at the same concurrency."""
    predicted_speedup: float | None = None
    """What the cost model with batch gives for decode_speedup, calibrated at the lowest concurrency."""
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Check:
    """One line of the trust verdict."""

    name: str
    passed: bool | None
    """None: could not be judged."""
    detail: str
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class ModelInfo:
    """What is known of one model of the run."""

    name: str
    source: str
    n_parameters: int
    n_layers: int
    bytes_per_step: int
    """Bytes of weights that one decoding step must read."""
    method: str = ""
    """Training method of a drafter of ours."""
    draft_vocabulary: int | None = None
    """Rows of the trimmed head, None for a full one."""
    training: dict[str, Any] = field(default_factory=dict)
    """Budget and provenance of a drafter of ours (trained tokens, seconds, seed, checkpoint hash)."""
    n_multiplied: int = 0
    """Parameters that every token is multiplied with: all but embeddings that are no head; 0: not recorded."""
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class BenchmarkResult:
    """One run. Written with status "running" before the first generation, so that a crash leaves it."""

    status: Literal["running", "complete", "interrupted"]
    suite: str
    command: list[str]
    config: dict[str, Any]
    provenance: dict[str, Any]
    metrics_version: str
    target: ModelInfo
    drafters: list[ModelInfo]
    n_requested: int
    n_effective: int
    n_failed: int
    rows: list[SummaryRow] = field(default_factory=list)
    load: list[LoadRow] = field(default_factory=list)
    """Only of a serving engine."""
    checks: list[Check] = field(default_factory=list)
    records_sha256: str = ""
    """Hash of records.jsonl, set when complete: a changed file is refused."""
    probes_sha256: str = ""
    """Hash of probes.jsonl likewise; empty for runs without probes."""
    schema_version: int = SCHEMA_VERSION
    __pydantic_config__ = _STRICT


_RECORD = TypeAdapter(GenerationRecord)
_RESULT = TypeAdapter(BenchmarkResult)


def result_schema() -> dict[str, Any]:
    """The JSON schema of result.json."""
    return _RESULT.json_schema()


def record_schema() -> dict[str, Any]:
    """The JSON schema of a line of records.jsonl."""
    return _RECORD.json_schema()


def record_line(record: GenerationRecord) -> str:
    """One line of records.jsonl, newline included."""
    return to_json(record).decode() + "\n"


def read_records(path: Path) -> Iterator[GenerationRecord]:
    """Read records.jsonl. A damaged, impossible or repeated line raises UserError with its number."""
    first: dict[tuple[object, ...], int] = {}
    for number, line in enumerate(byte_lines(path), start=1):
        try:
            record = _RECORD.validate_json(line)
        except ValidationError as error:
            raise UserError(f"{path}, line {number}: {first_problem(error)}") from None
        problem = _newer(record.schema_version) or _impossible(record)
        if problem:
            raise UserError(f"{path}, line {number}: {problem}")
        if (other := first.setdefault(record_key(record), number)) != number:
            raise UserError(f"{path}, line {number}: the same generation as line {other}")
        yield record


def record_key(record: GenerationRecord) -> tuple[str, str, float, int, int]:
    """What identifies a generation in its run."""
    return record.prompt_id, record.method, record.temperature, record.gamma, record.repeat


def _newer(version: int) -> str:
    return f"schema version {version} is of a newer specalign" if version > SCHEMA_VERSION else ""


def _impossible(record: GenerationRecord) -> str:
    """What no generation can have been like; empty where there is nothing."""
    steps = record.steps
    times = [
        record.prefill_s,
        record.decode_s,
        *((*steps.draft_s, *steps.verify_s, *steps.rest_s) if steps else ()),
    ]
    if record.status == "ok" and record.wall_s <= 0:
        return f"wall_s is {record.wall_s:g}; a generation takes time"
    if min(times) < 0:
        return f"a time of {min(times):g} seconds"
    if steps and len({len(column) for column in vars(steps).values()}) > 1:
        return "the columns of its steps have different lengths"
    return ""


def write_result(run: Path, result: BenchmarkResult) -> None:
    """Write result.json into the run folder, atomically."""
    write_text(run / RESULT_FILE, to_json(result, indent=2).decode() + "\n")


def read_result(run: Path) -> BenchmarkResult:
    """Read result.json of a run folder. Raises UserError where it is missing or not valid."""
    path = run / RESULT_FILE
    try:
        result = _RESULT.validate_json(read_text(path))
    except ValidationError as error:
        raise UserError(f"{path} is not a valid result: {first_problem(error)}") from None
    if problem := _newer(result.schema_version):
        raise UserError(f"{path}: {problem}")
    return result


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found, in one line: where, what."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
