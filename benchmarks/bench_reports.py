"""Building the report of a large run: seconds and memory for 50,000 generations.

    python benchmarks/bench_reports.py --output FILE

The run is the published demo, each of its generations repeated under new prompt ids. About a minute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from specalign.files import file_sha256, write_json
from specalign.provenance import stamp
from specalign.run_files import RECORDS_FILE, read_records, read_result, record_line, write_result

SOURCE = Path(__file__).parents[1] / "reports" / "2026-11-24_demo-packed_cpu-2core"
BUILD = """
import json, resource, sys, time
from pathlib import Path
begun = time.monotonic()
from specalign.reports import build_report
build_report(Path(sys.argv[1]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"wall_s": time.monotonic() - begun, "peak_bytes": peak}))
"""


def main() -> None:
    """Enlarge, build in a process of its own, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--generations", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        n = enlarge(args.source, run, args.generations)
        built = [build(run) for _ in range(args.rounds)]
    result = {
        "provenance": stamp("cpu"),
        "generations": n,
        "wall_s": [one["wall_s"] for one in built],
        "peak_bytes": max(one["peak_bytes"] for one in built),
    }
    write_json(args.output, result)
    print(json.dumps({key: result[key] for key in ("generations", "wall_s", "peak_bytes")}))


def enlarge(source: Path, run: Path, n: int) -> int:
    """Write a run of at least ``n`` generations; returns how many."""
    records = list(read_records(source / RECORDS_FILE))
    copies = -(-n // len(records))
    with open(run / RECORDS_FILE, "w", encoding="utf-8") as file:
        for copy in range(copies):
            for record in records:
                order = copy * len(records) + record.order
                file.write(record_line(replace(record, prompt_id=f"{record.prompt_id}/{copy}", order=order)))
    result = read_result(source)
    total = copies * len(records)
    digest = file_sha256(run / RECORDS_FILE)
    write_result(
        run, replace(result, n_requested=total, n_effective=total, records_sha256=digest, probes_sha256="")
    )
    return total


def build(run: Path) -> dict[str, float]:
    """Seconds and peak memory of one build."""
    done = subprocess.run([sys.executable, "-c", BUILD, str(run)], check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
