"""The examples of docs/decoding.md that run as they stand."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "decoding.md"


def test_every_self_contained_example_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    whole = [block for block in blocks if "import torch" in block]
    assert whole
    for block in whole:
        example = tmp_path / "example.py"
        example.write_text(block, encoding="utf-8")
        runpy.run_path(str(example))


def test_the_table_of_the_hybrid_comes_out_of_its_files() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for kind in ("summaries", "chat", "code"):
        name = f"../benchmarks/results/2026-11-28_hybrid-{kind}_cpu-2core.json"
        found = json.loads((DOCS.parent / name).read_text(encoding="utf-8"))
        rates = " | ".join(f"{found[which]['times_as_fast']:.3f}" for which in ("hybrid_anew", "hybrid"))
        assert f"| [{kind}]({name}) | {rates} | {found['hybrid']['readings']} |" in text


def test_the_table_of_copies_comes_out_of_its_file() -> None:
    text = DOCS.read_text(encoding="utf-8")
    (name,) = re.findall(r"\]\(\.\./(benchmarks/results/[^)]*copying[^)]*)\)", text)
    replay = json.loads((ROOT / name).read_text(encoding="utf-8"))["replay"]
    for kind, gammas in replay.items():
        drafters = ("prompt_lookup", "suffix_lookup")
        cells = [f"{gammas[gamma][drafter]['speedup']:.2f}" for drafter in drafters for gamma in "138"]
        assert f"| {kind} | {' | '.join(cells)} |" in text
