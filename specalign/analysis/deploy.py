"""The `vllm serve` command that a finished run recommends: a pure function of its result.json."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from specalign.analysis.decision import standing
from specalign.analysis.renew import OUTDATED
from specalign.errors import UserError, unknown
from specalign.metrics import METRICS_VERSION
from specalign.results import LOOKUP, BenchmarkResult, Interval, ModelInfo, SummaryRow

LOOKUP_NGRAM = 3
"""Longest n-gram of vLLM's prompt lookup: that of ours (`specalign.decoding.PromptLookup`)."""

HEAD = "head"
"""The kind of a drafter on the target's states, to vLLM an EAGLE-3 head."""

Resolve = Callable[[str], str]
"""A model's name here -> what vLLM loads: a hub id or a folder."""


@dataclass(frozen=True)
class Choice:
    """A drafter and draft length, and what was measured of them."""

    method: str
    gamma: int
    speedup: Interval
    use: bool
    """Whether it is to be served; by one request at a time as the report decides."""


@dataclass(frozen=True)
class Wish:
    """What is to be served."""

    drafter: str = ""
    """Empty: the run's fastest."""
    temperature: float = 0.0
    concurrency: int = 0
    """Requests at a time; 0: one, from the suite's own rows."""


def deploy_lines(result: BenchmarkResult, wish: Wish, *, resolve: Resolve = str) -> list[str]:
    """Comments that say what was measured, and the command.

    Where nothing is faster than the plain target, the command serves the target alone, and the best speculative one
    follows as a comment. Raises UserError where the run did not measure what is wished for.
    """
    choices = measured(result, wish)
    best = max(choices, key=lambda choice: (choice.use, choice.speedup.value))
    tried = sorted({choice.gamma for choice in choices if choice.method == best.method})
    load = f", {wish.concurrency} requests at a time" if wish.concurrency else ""
    lines = [
        f"# {best.method}, temperature {wish.temperature:g}{load}: gamma {best.gamma} was the fastest of "
        f"{_listed(tried)}, at {_shown(best.speedup)} the plain target's speed.",
        *_cautions(result, best, wish),
    ]
    plain = serve_command(resolve(result.target.source), dtype=_dtype(result))
    source, most = resolve(_source(result, best.method)), _at_once(result, best.method)
    n_drafted = min(best.gamma, most or best.gamma)
    config = speculative_config(_kind(result, best.method), n_drafted, source, parallel=most > 1)
    speculative = serve_command(resolve(result.target.source), dtype=_dtype(result), speculative=config)
    others = _in_sglang(result, best, resolve)
    if best.use:
        return [*lines, speculative, *others]
    return [
        *lines,
        "# Keep the plain target: nothing measured is shown to be faster. This serves it alone:",
        plain,
        "# With the drafter all the same:",
        f"# {speculative}",
        *others,
    ]


def measured(result: BenchmarkResult, wish: Wish) -> list[Choice]:
    """The run's speed-ups for a wish: of whole calls one at a time, or of throughput at a concurrency."""
    choices = _under_load(result, wish) if wish.concurrency else _alone(result, wish)
    if not choices:
        raise UserError("this run has no speculative row with a speed-up: nothing to deploy")
    names = {choice.method for choice in choices}
    if wish.drafter and wish.drafter not in names:
        raise unknown("drafter", wish.drafter, names)
    return [choice for choice in choices if wish.drafter in ("", choice.method)]


def _alone(result: BenchmarkResult, wish: Wish) -> list[Choice]:
    rows = [row for row in result.rows if row.speedup is not None and _servable(row)]
    temperatures = sorted({row.temperature for row in rows})
    if rows and wish.temperature not in temperatures:
        raise UserError(
            f"nothing was measured at temperature {wish.temperature:g} (measured: {_listed(temperatures)})"
        )
    return [
        Choice(
            row.method, row.gamma, row.speedup_joint or Interval(row.speedup.value), standing(row) == "faster"
        )
        for row in rows
        if row.speedup is not None and row.temperature == wish.temperature
    ]


def _servable(row: SummaryRow) -> bool:
    """Whether vLLM has it: it drafts a fixed number of tokens, by a model or by its own prompt lookup."""
    return not row.adaptive and (row.kind == "model" or row.method == LOOKUP)


def _under_load(result: BenchmarkResult, wish: Wish) -> list[Choice]:
    """Load is measured at the first of a run's temperatures."""
    rows = [row for row in result.load if row.speedup is not None]
    if not rows:
        raise UserError("this run has no load test (specalign-bench run --engine vllm --concurrency ...)")
    first = result.config.get("decoding", {}).get("temperatures", [0.0])[0]
    if wish.temperature != first:
        raise UserError(f"load was measured at temperature {first:g}, not {wish.temperature:g}")
    levels = sorted({row.concurrency for row in rows})
    if wish.concurrency not in levels:
        raise UserError(
            f"{wish.concurrency} requests at a time were not measured (measured: {_listed(levels)})"
        )
    return [
        Choice(row.method, row.gamma, Interval(row.speedup), row.speedup > 1)
        for row in rows
        if row.speedup is not None and row.concurrency == wish.concurrency
    ]


def speculative_config(kind: str, gamma: int, source: str, *, parallel: bool = False) -> dict[str, Any]:
    """vLLM's --speculative-config for a drafter of a kind ("lookup", "model" or :data:`HEAD`).

    ``parallel``: it drafts all tokens in one call, from the mask token that its config.json names (pard_token).

    Drafts are sampled from q, as in our engine: vLLM's default drafts greedily at every temperature, and fewer of
    those are accepted.
    """
    if kind == "lookup":
        lookup = {"prompt_lookup_max": LOOKUP_NGRAM, "prompt_lookup_min": 1}
        return {"method": "ngram", "num_speculative_tokens": gamma, **lookup}
    drafter = {"model": source, "draft_sample_method": "probabilistic"}
    at_once = {"parallel_drafting": True} if parallel else {}
    method = "eagle3" if kind == HEAD else "draft_model"
    return {"method": method, "num_speculative_tokens": gamma, **drafter, **at_once}


def serve_command(model: str, *, dtype: str, speculative: dict[str, Any] | None = None) -> str:
    """One line for a POSIX shell."""
    words = ["vllm", "serve", model, "--dtype", dtype]
    return shlex.join(words + (["--speculative-config", json.dumps(speculative)] if speculative else []))


def _in_sglang(result: BenchmarkResult, choice: Choice, resolve: Resolve) -> list[str]:
    """A head for SGLang, as comments: its own names first, then the server's line, which nobody has tried here."""
    info = next((info for info in result.drafters if info.name == choice.method and info.reads), None)
    if info is None:
        return []
    if not all(0 < layer < result.target.n_layers for layer in info.reads):
        most = result.target.n_layers - 1
        return [
            f"# SGLang does not serve it: it gives heads what enters layers 1 to {most} of this target (student.reads)."
        ]
    served = info.source.rstrip("/") + "-sglang"
    export = ["specalign-train", "export", info.source, "--target", result.target.source, "--output", served]
    serve = sglang_command(resolve(result.target.source), _dtype(result), served, choice.gamma)
    return ["# SGLang, under its own names (not tried here):", f"# {shlex.join(export)}", f"# {serve}"]


def sglang_command(model: str, dtype: str, head: str, gamma: int) -> str:
    """One line for a POSIX shell that serves a head: a chain of gamma drafted tokens, no tree."""
    chain = (
        f"--speculative-num-steps {gamma} --speculative-eagle-topk 1 --speculative-num-draft-tokens {gamma + 1}"
    )
    words = ["--model-path", model, "--dtype", dtype, "--speculative-algorithm", "EAGLE3"]
    drafter = ["--speculative-draft-model-path", head]
    return shlex.join(["python", "-m", "sglang.launch_server", *words, *drafter, *chain.split()])


def _cautions(result: BenchmarkResult, choice: Choice, wish: Wish) -> list[str]:
    lines = []
    if not wish.concurrency:
        lines.append(
            "# Measured with one request at a time: with more at once the gain shrinks, and turns into a loss "
            "where the target's calls are bound by computing."
        )
    if wish.concurrency and choice.use:
        lines.append("# A load test has no interval: measure again before you rely on a small gain.")
    if wish.temperature > 0 and result.provenance.get("hardware", {}).get("device") == "cpu":
        lines.append(
            "# Above temperature 0 vLLM 0.32 does not verify drafts by the target on CPUs (vllm-project/vllm#55005): "
            "mend it first by tests/serving/mend_vllm.py, or serve greedy requests alone."
        )
    info = next((info for info in result.drafters if info.name == choice.method), None)
    if info is not None and info.reads:
        return [*lines, *_of_run(result)]
    if info is not None and info.draft_vocabulary is not None:
        lines.append(
            f"# Measured with a head trimmed to {info.draft_vocabulary} rows; vLLM drafts with the full head, which "
            "takes longer and may draft what was never trained: export it first (below), and measure it there "
            "(run --engine vllm) before you rely on it."
        )
    if info is not None and _other_width(info, result.target):
        rows = f"{info.n_rows:,} rows under a target of {result.target.n_rows:,}"
        lines.append(f"# vLLM refuses a drafter of {rows}: export it first (below).")
    if info is not None and (info.draft_vocabulary is not None or _other_width(info, result.target)):
        words = ["specalign-train", "export", info.source, "--target", result.target.source, "--output"]
        lines.append("# " + shlex.join([*words, info.source.rstrip("/") + "-served"]))
    return [*lines, *_of_run(result)]


def _of_run(result: BenchmarkResult) -> list[str]:
    lines = [f"# {OUTDATED}"] if result.metrics_version != METRICS_VERSION else []
    return lines + ([f"# The run is {result.status}, not complete."] if result.status != "complete" else [])


def _other_width(info: ModelInfo, target: ModelInfo) -> bool:
    return 0 < info.n_rows != target.n_rows > 0


def _kind(result: BenchmarkResult, method: str) -> str:
    if any(info.reads for info in result.drafters if info.name == method):
        return HEAD
    return next((row.kind for row in result.rows if row.method == method), "model")


def _source(result: BenchmarkResult, method: str) -> str:
    return next((info.source for info in result.drafters if info.name == method), "")


def _at_once(result: BenchmarkResult, method: str) -> int:
    """Most tokens that a parallel drafter drafts in one call; 0 of any other."""
    return next((info.parallel for info in result.drafters if info.name == method), 0)


def _dtype(result: BenchmarkResult) -> str:
    return str(result.provenance.get("dtype", "auto")).removeprefix("torch.")


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _shown(value: Interval) -> str:
    bounds = "" if value.low is None or value.high is None else f" [{value.low:.2f}, {value.high:.2f}]"
    return f"{value.value:.2f}x{bounds}"
