"""What a report says of rows that a serving engine decoded, and of its behaviour under load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specalign.metrics.load import crossover
from specalign.reports.content import Block, Paragraph, Section, Table
from specalign.reports.tables import number, percentiles
from specalign.results import BenchmarkResult, LoadRow

VLLM = """\
These rows were decoded by vLLM {version}, one request at a time, each on a server of its own. Times are those of a
client on the same machine: prefill is the time to the first token. Acceptance comes from the server's counters, in
the same definitions (docs/metrics.md). vLLM gives neither Σ min(p, q) nor the times of drafting and verification:
those figures are missing, not zero. Above temperature 0 its drafts are sampled from q (draft_sample_method =
probabilistic), with the drafter's full head. Speed-ups are against plain vLLM."""
ENGINES = {"vllm": VLLM}
"""What is different about an engine's rows, by its name."""
LOAD = """\
So many requests at a time, each next one sent when another has ended. Throughput is over all requests; TTFT (time to
the first token), TPOT (time a token after it) and tokens/s of a request are p50 / p95 / p99 over requests. "Decode
speed-up" compares mean TPOT with the plain target's at the same concurrency B; "model" is the cost model's figure for
it: τ T(B) / (γ c T(B) + T(B (γ + 1))), T(n) being the plain target's step at n requests, on straight lines between
the measured ones and beyond, and c fitted at the lowest concurrency, where the model is therefore no prediction."""
HEADER = ("method", "γ", "at a time", "requests", "failed", "tokens/s", "speed-up", "decode speed-up", "model",
          "TTFT ms", "TPOT ms", "tokens/s of a request")  # fmt: skip


def engine(result: BenchmarkResult) -> Section | None:
    """What is different about rows that a serving engine decoded."""
    name = result.config.get("engine", {}).get("name", "")
    if name not in ENGINES:
        return None
    version = result.provenance.get("packages", {}).get(name)
    return Section("The engine", [Paragraph(_one_line(ENGINES[name].format(version=version)))])


def load(result: BenchmarkResult) -> Section | None:
    """Speed against concurrency, and where speculation stops to pay."""
    if not result.load:
        return None
    blocks: list[Block] = [Table(HEADER, [_cells(row) for row in result.load]), Paragraph(_one_line(LOAD))]
    return Section("Under load", [*blocks, *_crossings(result.load)])


def _cells(row: LoadRow) -> list[str]:
    return [
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


def _crossings(rows: Sequence[LoadRow]) -> list[Paragraph]:
    """Where each method's decode speed-up falls through 1, measured and by the model."""
    found = []
    for method, gamma in dict.fromkeys((row.method, row.gamma) for row in rows if row.decode_speedup):
        own = [row for row in rows if (row.method, row.gamma) == (method, gamma)]
        measured = {row.concurrency: row.decode_speedup for row in own if row.decode_speedup}
        model = {row.concurrency: row.predicted_speedup for row in own if row.predicted_speedup}
        found.append(
            Paragraph(f"{_crossing(measured)}; by the model, {_crossing(model)}.", f"{method}, γ = {gamma}:")
        )
    return found


def _crossing(speedups: Mapping[int, float]) -> str:
    if not speedups:
        return "not known"
    place = crossover(speedups)
    if place is not None:
        return f"pays up to {place:.1f} requests at a time"
    first, last = min(speedups), max(speedups)
    if speedups[last] > 1:
        return f"still pays at {last} requests at a time"
    return f"does not pay, from {first} request{'s' if first > 1 else ''} at a time on"


def _one_line(text: str) -> str:
    return " ".join(text.split())
