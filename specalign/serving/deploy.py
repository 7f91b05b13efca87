"""The `vllm serve` command that a finished run recommends: a pure function of its result.json."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from specalign.errors import UserError, unknown
from specalign.results import BenchmarkResult, Interval, SummaryRow

LOOKUP_NGRAM = 3
"""Longest n-gram of vLLM's prompt lookup: that of ours (`specalign.decoding.PromptLookup`)."""

Resolve = Callable[[str], str]
"""A model's name here -> what vLLM loads: a hub id or a folder."""


def deploy_lines(
    result: BenchmarkResult, *, drafter: str = "", temperature: float = 0.0, resolve: Resolve = str
) -> list[str]:
    """Comments that say what was measured, and the command.

    ``drafter``: empty for the fastest of the run. Where no row is faster than the plain target, the command serves
    the target alone, and the best speculative one follows as a comment. Raises UserError where the run has no
    row of this drafter or temperature.
    """
    row = recommended(result, drafter, temperature)
    speedup = row.speedup or Interval(0.0)
    tried = sorted({other.gamma for other in _speculative(result) if other.method == row.method})
    lines = [
        f"# {row.method}, temperature {temperature:g}: gamma {row.gamma} was the fastest of {_listed(tried)}, at "
        f"{_shown(speedup)} the plain target's speed.",
        *_cautions(result, row),
    ]
    plain = serve_command(resolve(result.target.source), dtype=_dtype(result))
    config = speculative_config(row.kind, row.gamma, resolve(_source(result, row.method)))
    speculative = serve_command(resolve(result.target.source), dtype=_dtype(result), speculative=config)
    if speedup.value > 1:
        return [*lines, speculative]
    return [
        *lines,
        "# Nothing measured is faster than the plain target, so this serves it alone:",
        plain,
        "# With the drafter all the same:",
        f"# {speculative}",
    ]


def recommended(result: BenchmarkResult, drafter: str, temperature: float) -> SummaryRow:
    """The row of the greatest measured speed-up over whole calls."""
    rows = _speculative(result)
    if not rows:
        raise UserError("this run has no speculative row with a speed-up: nothing to deploy")
    if drafter and drafter not in {row.method for row in rows}:
        raise unknown("drafter", drafter, {row.method for row in rows})
    rows = [row for row in rows if drafter in ("", row.method)]
    same = [row for row in rows if row.temperature == temperature]
    if not same:
        measured = _listed(sorted({row.temperature for row in rows}))
        raise UserError(f"nothing was measured at temperature {temperature:g} (measured: {measured})")
    return max(same, key=lambda row: row.speedup.value if row.speedup else 0.0)


def speculative_config(kind: str, gamma: int, source: str) -> dict[str, Any]:
    """vLLM's --speculative-config for a drafter of a kind ("lookup" or "model").

    Drafts are sampled from q, as in our engine: vLLM's default drafts greedily at every temperature, and fewer of
    those are accepted.
    """
    if kind == "lookup":
        lookup = {"prompt_lookup_max": LOOKUP_NGRAM, "prompt_lookup_min": 1}
        return {"method": "ngram", "num_speculative_tokens": gamma, **lookup}
    drafter = {"model": source, "draft_sample_method": "probabilistic"}
    return {"method": "draft_model", "num_speculative_tokens": gamma, **drafter}


def serve_command(model: str, *, dtype: str, speculative: dict[str, Any] | None = None) -> str:
    """One line for a POSIX shell."""
    words = ["vllm", "serve", model, "--dtype", dtype]
    return shlex.join(words + (["--speculative-config", json.dumps(speculative)] if speculative else []))


def _speculative(result: BenchmarkResult) -> list[SummaryRow]:
    return [row for row in result.rows if row.kind != "target" and row.speedup is not None]


def _cautions(result: BenchmarkResult, row: SummaryRow) -> list[str]:
    lines = [
        "# Measured with one request at a time: with more at once the gain shrinks, and turns into a loss where "
        "the target's calls are bound by computing."
    ]
    speedup = row.speedup
    if speedup and speedup.low is not None and speedup.high is not None and speedup.low <= 1 <= speedup.high:
        lines.append("# The run does not distinguish this from 1: measure more prompts before you rely on it.")
    info = next((info for info in result.drafters if info.name == row.method), None)
    if info is not None and info.draft_vocabulary is not None:
        lines.append(
            f"# Measured with a head trimmed to {info.draft_vocabulary} rows; vLLM drafts with the full head, "
            "which takes longer and may propose tokens that the trimmed one lacks."
        )
    if result.status != "complete":
        lines.append(f"# The run is {result.status}, not complete.")
    return lines


def _source(result: BenchmarkResult, method: str) -> str:
    return next((info.source for info in result.drafters if info.name == method), "")


def _dtype(result: BenchmarkResult) -> str:
    return str(result.provenance.get("dtype", "auto")).removeprefix("torch.")


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _shown(value: Interval) -> str:
    bounds = "" if value.low is None or value.high is None else f" [{value.low:.2f}, {value.high:.2f}]"
    return f"{value.value:.2f}x{bounds}"
