"""A suite with adaptive draft lengths: rows of their own, costs from this machine, and what does not apply to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from specalign.analysis.deploy import Wish, measured
from specalign.benchmarks.cli import main
from specalign.errors import UserError
from specalign.probes import CallProbe, ForcedProbe
from specalign.reports.tables import table_cells
from specalign.run_files import read_run

Bench = Callable[..., list[str]]


def test_adaptive_rows_stand_beside_those_of_one_length(bench: Bench, tmp_path: Path) -> None:
    main(bench("--decoding.adaptive"))
    main(["verify", str(tmp_path / "run")])
    run = read_run(tmp_path / "run")
    rows = {(row.method, row.temperature): row for row in run.result.rows}
    fixed, adaptive = rows["copy", 0.0], rows["copy_adaptive", 0.0]
    assert not fixed.adaptive
    assert adaptive.adaptive
    assert adaptive.gamma == fixed.gamma == 3
    assert adaptive.exact_match_target == 1
    assert fixed.c is not None
    assert adaptive.c is adaptive.break_even_alpha is None
    assert adaptive.predicted_speedup is not None
    costs = run.result.provenance["adaptive_costs"]
    assert set(costs) == {"copy_adaptive", "small_adaptive"}
    assert costs["copy_adaptive"]["c"] > 0
    assert len(costs["copy_adaptive"]["verify"]) == 4
    header, lines = table_cells(run.result.rows)
    gammas = {line[0]: line[header.index("γ")] for line in lines}
    assert (gammas["copy"], gammas["copy_adaptive"]) == ("3", "≤ 3")
    choices = measured(run.result, Wish(temperature=0.0))
    assert {choice.method for choice in choices} == {"prompt_lookup", "copy", "small"}  # what vLLM can serve


def test_a_drafter_of_that_name_is_refused(bench: Bench, models_folder: Path) -> None:
    words = bench("--decoding.adaptive")
    words[words.index("--drafter") + 1 : words.index("--drafter") + 1] = [
        f"copy_adaptive={models_folder / 'copy'}"
    ]
    with pytest.raises(UserError, match="copy_adaptive: the name is taken"):
        main(words)


def test_lookups_and_compositions_are_rows_of_their_own(bench: Bench, tmp_path: Path) -> None:
    main(bench("--include", "prompt_lookup", "suffix_lookup", "--compose", "fast=suffix_lookup+copy"))
    main(["verify", str(tmp_path / "run")])
    run = read_run(tmp_path / "run")
    greedy = {row.method: row for row in run.result.rows if row.temperature == 0}
    kinds = {method: (row.kind, row.adaptive) for method, row in greedy.items()}
    assert kinds == {
        "target": ("target", False),
        "prompt_lookup": ("lookup", False),
        "suffix_lookup": ("lookup", True),
        "copy": ("model", False),
        "small": ("model", False),
        "fast": ("hybrid", True),
    }
    assert greedy["fast"].exact_match_target == greedy["suffix_lookup"].exact_match_target == 1
    assert greedy["fast"].mbsu is None, "its steps read now one drafter, now another"
    costs = run.result.provenance["adaptive_costs"]
    assert set(costs) == {"suffix_lookup", "fast"}
    assert costs["fast"]["parts"][0] == costs["suffix_lookup"]
    by = {record.method: record.drafted_by for record in run.records if record.drafted_by}
    assert set(by) == {"fast"}
    assert any(part >= 0 for part in by["fast"].part)
    methods = {probe.method for probe in run.probes if isinstance(probe, CallProbe | ForcedProbe)}
    assert methods == {"target", "prompt_lookup", "suffix_lookup", "copy", "small"}


@pytest.mark.parametrize(
    ("composition", "words"),
    [
        ("fast=suffix_lookup+nobody", "two different drafters of this run"),
        ("fast=copy+copy", "two different drafters of this run"),
        ("copy=prompt_lookup+small", "'copy' is taken"),
        ("fast", "takes NAME=FIRST\\+SECOND"),
    ],
)
def test_a_composition_names_two_drafters_of_the_run(bench: Bench, composition: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        main(bench("--compose", composition))
