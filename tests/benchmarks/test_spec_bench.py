"""Spec-Bench's summarisation rows (CNN/DailyMail articles) through the real SmolLM2 with a drafter cut out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from specalign.benchmarks.cli import parse_run
from specalign.benchmarks.runner import run
from specalign.run_files import RECORDS_FILE, read_records
from specalign.training.cli import configs
from specalign.training.session import train_all

QUESTIONS = Path(__file__).parents[3] / "shared" / "data" / "spec_bench" / "question.jsonl"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not QUESTIONS.is_file(), reason="no copy of Spec-Bench beside the repository"),
]


def test_summaries_are_scored_against_their_references(tmp_path: Path) -> None:
    words = "--method aligned --student.align-tokens 600 --data.n-train 8 --data.n-validation 2 --device cpu"
    train_all(configs([*words.split(), "--output", str(tmp_path / "drafter")]))
    words = f"--drafter aligned={tmp_path / 'drafter'} --data spec_bench:{QUESTIONS} --limit 2 --device cpu"
    words += f" --data.category summarization --data.max-prompt-tokens 700 --output {tmp_path / 'run'}"
    words += " --decoding.temperatures 0 --decoding.max-new-tokens 48 --decoding.gammas 2"
    result = run(parse_run(words.split()))
    records = list(read_records(tmp_path / "run" / RECORDS_FILE))
    assert (result.status, result.n_failed, len(records)) == ("complete", 0, 2 * 3)
    assert {record.category for record in records} == {"summarization"}
    assert all(len(record.reference.split()) > 20 and len(record.text.split()) > 10 for record in records)
    assert {check.name: check.passed for check in result.checks}["lossless"]
    rows = {row.method: row for row in result.rows}
    assert set(rows) == {"target", "prompt_lookup", "aligned"}
    for row in rows.values():
        assert row.rouge_vs_reference is not None
        assert 0.1 < row.rouge_vs_reference.rouge1.value < 0.9, (
            "about the article, and not the reference itself"
        )
        assert row.rouge_vs_reference == rows["target"].rouge_vs_reference, "greedy outputs are the same"
    assert rows["aligned"].alpha_counted is not None
