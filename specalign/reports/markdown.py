"""report.md: sections are functions from the result to lines of markdown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from specalign.metrics.load import crossover
from specalign.reports.tables import comparison, escape, interval, markdown_table, number, percentiles
from specalign.results import BenchmarkResult, Interval, LoadRow, SummaryRow

SYMBOLS = """\
Every row decodes the same prompts; speed-up is the plain target's seconds per token over the row's, on whole calls
(prefill included), paired by prompt, with a 95 % BCa bootstrap interval over prompts; "decode speed-up" is the same on
decode seconds alone, and "predicted" is what the cost model gives for it from the measured step times and acceptance.
γ: draft length. α expected: mean over examined draft positions of Σ min(p, q). α counted: accepted / examined drafts.
Break-even α: the acceptance rate at which decoding would be as fast as the plain target on this machine. τ: tokens per
target call. c: one drafting call over one plain target call. ROUGE is F1 x 100."""


def report_lines(result: BenchmarkResult, pictures: Sequence[tuple[str, str]]) -> list[str]:
    """The whole report; ``pictures`` are (file name, caption)."""
    return [
        f"# Speculative decoding: {escape(result.suite)}",
        "",
        *_warnings(result),
        *_answer(result),
        *_verdict(result),
        *_setting(result),
        *_comparison(result),
        *_engine(result),
        *_load(result),
        *_pictures(pictures),
        *_reproduce(result),
    ]


def _warnings(result: BenchmarkResult) -> list[str]:
    """What is wrong with the run, first of all."""
    problems = [f"{check.name}: {check.detail}" for check in result.checks if check.passed is False]
    if result.status != "complete":
        made = result.n_effective + result.n_failed
        problems.insert(0, f"the run is {result.status}: {made} of {result.n_requested} generations are there")
    if not problems:
        return []
    return ["> **Read this first.**", *(f"> - {escape(problem)}" for problem in problems), ""]


def _answer(result: BenchmarkResult) -> list[str]:
    """One sentence a temperature: which drafter, how fast, how sure."""
    lines = []
    for temperature in _temperatures(result.rows):
        rows = [row for row in result.rows if row.temperature == temperature and row.speedup is not None]
        if rows:
            lines.append(f"- **Temperature {temperature:g}:** {_sentence(rows)}")
            lines += _standing(rows)
    return (
        [*lines, ""] if lines else ["No speed-up could be computed: there are no finished rows to compare.", ""]
    )


def _sentence(rows: Sequence[SummaryRow]) -> str:
    best = max(rows, key=lambda row: row.speedup.value if row.speedup else 0.0)
    speedup = best.speedup or Interval(0.0)
    measured = f"**{interval(speedup, unit='x')}**"
    name = f"**{escape(best.method)}** with γ = {best.gamma}"
    if speedup.low is not None and speedup.low > 1:
        return f"use {name}: {measured} the plain target's speed."
    if speedup.low is None or (speedup.high or 0.0) >= 1:
        return f"the best, {name}, is not distinguishable from the plain target: {measured}."
    needed = " (no acceptance rate would do)" if best.break_even_alpha is None else ""
    if best.alpha_counted is not None and best.break_even_alpha is not None:
        reached = f"{best.alpha_counted.value:.2f}"
        needed = f"; its drafts are accepted at a rate of {reached}, break-even is {best.break_even_alpha:.2f}"
    return f"nothing is faster than the plain target on this machine. The best, {name}, runs at {measured}{needed}."


def _standing(rows: Sequence[SummaryRow]) -> list[str]:
    """Where each model drafter stands against break-even, at its fastest draft length."""
    fastest = {
        row.method: row for row in sorted(rows, key=lambda row: row.speedup.value if row.speedup else 0.0)
    }
    stands = [
        f"{escape(row.method)} {row.alpha_counted.value:.2f} of {number(row.break_even_alpha)}"
        for method in dict.fromkeys(row.method for row in rows)
        if (row := fastest[method]).kind == "model" and row.alpha_counted is not None
    ]
    return (
        [f"  Acceptance rate reached, of the rate that breaks even here: {'; '.join(stands)}."]
        if stands
        else []
    )


def _verdict(result: BenchmarkResult) -> list[str]:
    if not result.checks:
        return []
    words = {True: "passed", False: "**FAILED**", None: "not judged"}
    lines = [[check.name, words[check.passed], check.detail] for check in result.checks]
    table = [f"| {escape(name)} | {word} | {escape(detail)} |" for name, word, detail in lines]
    return [
        "## Can the numbers be trusted?",
        "",
        "| check | result | figures |",
        "| --- | --- | --- |",
        *table,
        "",
    ]


def _setting(result: BenchmarkResult) -> list[str]:
    hardware = result.provenance.get("hardware", {})
    decoding, data = result.config.get("decoding", {}), result.config.get("data", {})
    packages = result.provenance.get("packages", {})
    processor = hardware.get("gpu") or f"{hardware.get('cpu')}, {hardware.get('torch_threads')} threads"
    facts = [
        ["hardware", f"{processor} ({hardware.get('platform')})"],
        [
            "target",
            f"{result.target.source}, {_size(result.target.n_parameters)}, {result.provenance.get('dtype')}",
        ],
        [
            "data",
            f"{data.get('source')}, {data.get('split')} split, {result.provenance.get('n_prompts')} prompts",
        ],
        ["prompts cut to fit", f"{result.provenance.get('n_truncated_prompts')}"],
        ["new tokens", f"at most {decoding.get('max_new_tokens')} a generation"],
        ["generations", f"{result.n_requested} requested, {result.n_effective} made, {result.n_failed} failed"],
        ["software", ", ".join(f"{name} {version}" for name, version in packages.items())],
        ["started", str(result.provenance.get("created"))],
    ]
    lines = ["## What was measured", "", *markdown_table(["", ""], facts), ""]
    return lines + (_drafters(result) if result.drafters else [])


def _drafters(result: BenchmarkResult) -> list[str]:
    header = [
        "drafter",
        "trained by",
        "parameters",
        "layers",
        "head rows",
        "weights read a step",
        "steps",
        "tokens",
        "s",
    ]
    lines = []
    for info in result.drafters:
        training = info.training
        lines.append(
            [
                info.name,
                info.method or "not ours",
                _size(info.n_parameters),
                str(info.n_layers),
                str(info.draft_vocabulary or "all"),
                f"{info.bytes_per_step / 1e6:.0f} MB",
                str(training.get("steps", "–")),
                str(training.get("trained_tokens", "–")),
                number(training.get("wall_s"), 0),
            ]
        )
    return [
        *markdown_table(header, lines),
        "",
        f"The target reads {result.target.bytes_per_step / 1e6:.0f} MB a step.",
        "",
    ]


def _comparison(result: BenchmarkResult) -> list[str]:
    lines = ["## Comparison", ""]
    for temperature in _temperatures(result.rows):
        rows = [row for row in result.rows if row.temperature == temperature]
        lines += [f"### Temperature {temperature:g}", "", *comparison(rows), ""]
    return [*lines, SYMBOLS, ""] if result.rows else [*lines, "There are no rows: the run did not finish.", ""]


ENGINE = """\
These rows were decoded by vLLM {version}, one request at a time, each on a server of its own. Times are those of a
client on the same machine: prefill is the time to the first token. Acceptance comes from the server's counters, in
the same definitions (docs/metrics.md). vLLM gives neither Σ min(p, q) nor the times of drafting and verification:
those figures are missing, not zero. Above temperature 0 its drafts are sampled from q
(`draft_sample_method = probabilistic`), with the drafter's full head. Speed-ups are against plain vLLM."""


def _engine(result: BenchmarkResult) -> list[str]:
    """What is different about rows that a serving engine decoded."""
    if result.config.get("engine", {}).get("name") != "vllm":
        return []
    version = result.provenance.get("packages", {}).get("vllm")
    return ["## The engine", "", ENGINE.format(version=version), ""]


LOAD = """\
So many requests at a time, each next one sent when another has ended. Throughput is over all requests; TTFT (time to
the first token), TPOT (time a token after it) and tokens/s of a request are p50 / p95 / p99 over requests. "Decode
speed-up" compares mean TPOT with the plain target's at the same concurrency B; "model" is the cost model's figure for
it: τ T(B) / (γ c T(B) + T(B (γ + 1))), T(n) being the plain target's step at n requests, on straight lines between
the measured ones and beyond, and c fitted at the lowest concurrency, where the model is therefore no prediction."""


def _load(result: BenchmarkResult) -> list[str]:
    """Speed against concurrency, and where speculation stops to pay."""
    if not result.load:
        return []
    header = ["method", "γ", "at a time", "requests", "failed", "tokens/s", "speed-up", "decode speed-up", "model",
              "TTFT ms", "TPOT ms", "tokens/s of a request"]  # fmt: skip
    lines = [
        [
            row.method,
            str(row.gamma or "–"),
            str(row.concurrency),
            str(row.n_requests),
            str(row.n_failed),
            number(row.tokens_per_s, 1),
            number(row.speedup),
            number(row.decode_speedup),
            number(row.predicted_speedup),
            percentiles(row.ttft_ms),
            percentiles(row.tpot_ms),
            percentiles(row.request_tokens_per_s, 1),
        ]
        for row in result.load
    ]
    return ["## Under load", "", *markdown_table(header, lines), "", LOAD, "", *_crossings(result.load), ""]


def _crossings(rows: Sequence[LoadRow]) -> list[str]:
    """Where each method's decode speed-up falls through 1, measured and by the model."""
    lines = []
    for method, gamma in dict.fromkeys((row.method, row.gamma) for row in rows if row.decode_speedup):
        own = [row for row in rows if (row.method, row.gamma) == (method, gamma)]
        measured = {row.concurrency: row.decode_speedup for row in own if row.decode_speedup}
        model = {row.concurrency: row.predicted_speedup for row in own if row.predicted_speedup}
        lines.append(
            f"- {escape(method)}, γ = {gamma}: {_crossing(measured)}; by the model, {_crossing(model)}."
        )
    return lines


def _crossing(speedups: dict[int, float]) -> str:
    if not speedups:
        return "not known"
    place = crossover(speedups)
    if place is not None:
        return f"pays up to {place:.1f} requests at a time"
    first, last = min(speedups), max(speedups)
    if speedups[last] > 1:
        return f"still pays at {last} requests at a time"
    return f"does not pay, from {first} request{'s' if first > 1 else ''} at a time on"


def _pictures(pictures: Sequence[tuple[str, str]]) -> list[str]:
    lines = ["## Pictures", ""] if pictures else []
    for name, caption in pictures:
        lines += [f"![{caption}]({name}.png)", "", f"*{caption}*", ""]
    return lines


def _reproduce(result: BenchmarkResult) -> list[str]:
    git = result.provenance.get("git", {})
    commit = f" at commit `{git['commit']}`" if git else ""
    command = shlex.join(result.command)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return [
        "## How to reproduce it",
        "",
        f"specalign {result.provenance.get('specalign')}{commit}, metric definitions version {result.metrics_version}:",
        "",
        fence,
        command,
        fence,
        "",
        "`records.jsonl` holds every generation with its counts and times a step; `result.json` the figures above.",
    ]


def _temperatures(rows: Sequence[SummaryRow]) -> list[float]:
    return sorted({row.temperature for row in rows})


def _size(n_parameters: int) -> str:
    return f"{n_parameters / 1e9:.2f}B" if n_parameters >= 1e9 else f"{n_parameters / 1e6:.1f}M"
