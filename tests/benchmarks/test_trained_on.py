"""A drafter that is measured on rows that it was trained on is named: by the check, the run and the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from specalign.benchmarks.cli import main, parse_run
from specalign.benchmarks.preflight import findings
from specalign.benchmarks.suite import load_prompts
from specalign.data.trained_on import FILE, n_trained_on, write_documents
from specalign.models.load import load_tokenizer
from specalign.results import N_SEEN
from specalign.run_files import read_result

Bench = Callable[..., list[str]]


@pytest.fixture
def seen(bench: Bench, models_folder: Path, tmp_path: Path) -> Callable[[Sequence[int]], list[str]]:
    """seen([0, 2]) -> a run of a drafter that was trained on these of its prompts, and on other rows."""

    def words(places: Sequence[int]) -> list[str]:
        shutil.copytree(models_folder / "copy", tmp_path / "student")
        found = bench("--drafter", f"copy={tmp_path / 'student'}", "--limit", "3", drafters=())
        config = parse_run(found[1:])
        prompts = load_prompts(config, load_tokenizer(config.target.model))
        write_documents(tmp_path / "student", [prompts[place] for place in places])
        with open(tmp_path / "student" / FILE, "a", encoding="utf-8") as file:
            file.write("0123456789abcdef\n")
        return found

    return words


def test_a_run_over_training_rows_says_so(
    seen: Callable[[Sequence[int]], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = seen([0, 2])
    note = "drafter 'copy' is measured on rows that it was trained on (2 of 3 prompts)"
    checks = {finding.check: finding for finding in findings(parse_run(words[1:]), data=True)}
    assert checks["copy: trained on"].verdict == "note"
    capsys.readouterr()
    main(words)
    assert f"warning: {note}" in capsys.readouterr().out
    (info,) = read_result(tmp_path / "run").drafters
    assert info.training[N_SEEN] == 2
    assert note in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")


def test_a_run_over_other_rows_says_nothing(
    seen: Callable[[Sequence[int]], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = seen([])
    checks = {finding.check: finding for finding in findings(parse_run(words[1:]), data=True)}
    assert checks["copy: trained on"].verdict == "ok"
    main(words)
    assert "trained on" not in capsys.readouterr().out
    assert N_SEEN not in read_result(tmp_path / "run").drafters[0].training


def test_an_exported_folder_is_known_by_what_it_was_made_of(
    seen: Callable[[Sequence[int]], list[str]], tmp_path: Path
) -> None:
    config = parse_run(seen([0, 1])[1:])
    prompts = load_prompts(config, load_tokenizer(config.target.model))
    assert n_trained_on(tmp_path / "student", prompts) == 2
    (tmp_path / "served").mkdir()
    assert n_trained_on(tmp_path / "served", prompts) == 0
    provenance = {"exported": {"student": str(tmp_path / "student")}}
    (tmp_path / "served" / "provenance.json").write_text(json.dumps(provenance))
    assert n_trained_on(tmp_path / "served", prompts) == 2
