"""What a benchmark run comes to: `result.json` is one :class:`BenchmarkResult`, with a row of figures a method.

Every figure can be recomputed from `records.jsonl` (``specalign/records.py``) and `probes.jsonl`
(``specalign/probes.py``) alone; ``specalign/run_files.py`` reads and writes all three.
Units stand in the names: ``_s`` seconds, ``n_`` counts. Notation as in ``specalign/__init__.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict

from specalign.records import SCHEMA_VERSION

TARGET, LOOKUP = "target", "prompt_lookup"
"""Values of ``method``: plain decoding, and drafting from the prompt; a drafter's name otherwise."""
SUFFIX = "suffix_lookup"
LOOKUPS = (LOOKUP, SUFFIX)
"""Drafters that need no model: they copy."""
ADAPTIVE = "_adaptive"
"""End of the name of a drafter that decodes at adaptive draft lengths beside its own row."""
ALONE = "alone"
"""Value of ``rule`` in records in which a drafter decodes on its own."""

N_SEEN = "n_seen_prompts"
"""Key of ``ModelInfo.training``: prompts of the run that are rows of the drafter's training data."""
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


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
    """Budget and provenance of a drafter of ours (trained tokens, seconds, seed, checkpoint hash), and how many of the
    prompts it was trained on, where there are any."""
    n_multiplied: int = 0
    """Parameters that every token is multiplied with: all but embeddings that are no head; 0: not recorded."""
    n_rows: int = 0
    """Rows of its head as it is stored, padded ones included; 0: not recorded."""
    parallel: int = 0
    """Most tokens that it drafts in one call, from mask tokens (pard_token); 0: one token a call."""
    reads: list[int] = field(default_factory=list)
    """Layers of the target whose states it reads, for a head on them; empty: a model of its own."""
    __pydantic_config__ = _STRICT


def seen_note(name: str, n_seen: int, n_prompts: int) -> str:
    """What is said of a drafter that is measured on what it was trained on."""
    return (
        f"drafter {name!r} is measured on rows that it was trained on ({n_seen} of {n_prompts} prompts): new text may "
        "be accepted less; data.split = test has other rows"
    )


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
