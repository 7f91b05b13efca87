"""Predicted against measured speed-up of finished runs: does the cost model say what comes out?

    python benchmarks/bench_prediction.py RUN [RUN ...] [--output FILE.json]

Every row of the runs that drafted (benchmarks/prediction.toml: gamma = 1..8) is compared with three predictions: from
its survival curve and call times that were measured apart, the same with the medians of its own steps, and
Leviathan et al.'s formula (acceptance i.i.d., verification free, no overhead). The bar is on the first; exit code 1
where a row misses it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from specalign.files import write_json
from specalign.results import BenchmarkResult, SummaryRow
from specalign.run_files import read_run

BAR = 0.05


def main() -> int:
    """Print a line a row; returns the exit code."""
    parser = argparse.ArgumentParser(description="Predicted against measured speed-up of finished runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path, help="JSON file for the comparison")
    arguments = parser.parse_args()
    runs = [judged(read_run(folder).result) for folder in arguments.runs]
    for run in runs:
        for row in run["rows"]:
            print(" ".join(f"{word:>14}" for word in cells(row)))
        print(
            f"{len(run['rows'])} rows; the worst prediction from probes is {run['worst_gap']:.1%} off (bar: {BAR:.0%})"
        )
        print(f"steady clock: {run['checks']['steady clock'][1]}\n")
    if arguments.output:
        write_json(arguments.output, {"bar": BAR, "runs": runs})
    return int(max(run["worst_gap"] for run in runs) > BAR)


def judged(result: BenchmarkResult) -> dict[str, Any]:
    """A run's rows, the worst of them, and what was run on what."""
    rows = [compared(row) for row in result.rows if row.predicted_from_probes]
    if not rows:
        raise SystemExit(f"suite {result.suite!r}: no row with a prediction; is the run complete?")
    worst = max(abs(row["from_probes"]["gap"]) for row in rows)
    return provenance(result) | {"worst_gap": worst, "rows": rows}


def compared(row: SummaryRow) -> dict[str, Any]:
    """The measured decode speed-up of a row, and each prediction with its relative gap."""
    assert row.decode_speedup is not None
    measured = row.decode_speedup.value
    predictions = {
        "from_probes": row.predicted_from_probes,
        "from_own_steps": row.predicted_speedup,
        "leviathan": row.leviathan_speedup,
    }
    return {
        "method": row.method,
        "temperature": row.temperature,
        "gamma": row.gamma,
        "measured": measured,
        "interval": [row.decode_speedup.low, row.decode_speedup.high],
        **{
            name: None if value is None else {"speedup": value, "gap": value / measured - 1}
            for name, value in predictions.items()
        },
    }


def cells(row: dict[str, Any]) -> list[str]:
    """One line of the printed table."""
    shown = [row["method"], f"T={row['temperature']:g}", f"gamma={row['gamma']}", f"{row['measured']:.3f}x"]
    for name in ("from_probes", "from_own_steps", "leviathan"):
        shown.append("none" if row[name] is None else f"{row[name]['speedup']:.3f}x {row[name]['gap']:+.1%}")
    return shown


def provenance(result: BenchmarkResult) -> dict[str, Any]:
    """What was run, on what."""
    kept = ("created", "specalign", "git", "packages", "hardware", "dtype", "attention", "n_prompts")
    facts = {key: result.provenance[key] for key in kept if key in result.provenance}
    checks = {check.name: [check.passed, check.detail] for check in result.checks}
    return {"suite": result.suite, "target": result.target.source, **facts, "checks": checks}


if __name__ == "__main__":
    sys.exit(main())
