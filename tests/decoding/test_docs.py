"""The examples of docs/decoding.md that run as they stand."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "decoding.md"


def test_every_self_contained_example_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    whole = [block for block in blocks if "import torch" in block]
    assert whole
    for block in whole:
        example = tmp_path / "example.py"
        example.write_text(block, encoding="utf-8")
        runpy.run_path(str(example))
