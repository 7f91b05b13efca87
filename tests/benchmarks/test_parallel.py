"""A suite with a parallel drafter: one call a draft, timed for every length, in figures and costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from specalign.benchmarks.calls import timed_lengths
from specalign.benchmarks.cli import main
from specalign.benchmarks.runtime import drafter_sizes
from specalign.decoding import Masks, ModelDrafter, ParallelDrafter, PromptLookup
from specalign.errors import UserError
from specalign.models.tiny import make_model
from specalign.probes import CallProbe
from specalign.run_files import read_run

Bench = Callable[..., list[str]]


@pytest.fixture
def masked(models_folder: Path, tmp_path: Path) -> Path:
    """The copy of the target, with a mask token and drafts of up to 3 tokens."""
    folder = shutil.copytree(models_folder / "copy", tmp_path / "masked")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pard_token": 63, "pard_k": 3}))
    return folder


def test_its_calls_are_timed_for_every_length_and_its_figures_follow(
    bench: Bench, masked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(bench("--drafter", f"masked={masked}", "--decoding.adaptive", "--decoding.gammas", "3", drafters=()))
    main(["verify", str(tmp_path / "run")])
    run = read_run(tmp_path / "run")
    timed = {
        probe.n_tokens for probe in run.probes if isinstance(probe, CallProbe) and probe.method == "masked"
    }
    assert timed == {1, 2, 3}
    costs = run.result.provenance["adaptive_costs"]["masked_adaptive"]
    assert len(costs["draft"]) == 4
    assert costs["draft"][:2] == [0, costs["c"]]
    rows = {(row.method, row.temperature): row for row in run.result.rows}
    for temperature in (0.0, 1.0):
        row = rows["masked", temperature]
        assert row.kind == "model"
        assert row.c is not None
        assert row.predicted_from_probes is not None
        assert len(row.survival_by_position) == 3
    greedy = rows["masked", 0.0]
    assert greedy.exact_match_target == 1
    assert (
        greedy.survival_by_position[0] == 1
    )  # a copy of the target is right at the first token, not at its masks
    assert greedy.survival_by_position[1] is not None
    assert greedy.survival_by_position[1] < 1
    assert {info.parallel for info in run.result.drafters} == {3}
    main(["explain", str(tmp_path / "run")])
    told = capsys.readouterr().out
    assert "first tokens of drafts that decoding examined: 1.000" in told
    assert "that is not rounding" not in told
    main(["deploy", str(tmp_path / "run"), "--drafter", "masked"])
    assert '"parallel_drafting": true' in capsys.readouterr().out


def test_a_call_of_each_usual_size_has_a_graph() -> None:
    """Masks and one pending token, two after a first one accepted, all after a whole draft."""
    model = make_model("llama")
    drafter = ParallelDrafter(model, Masks(4, 6))
    assert drafter_sizes(drafter, [4], composed=False) == (1, 2, 4, 5, 8)
    assert drafter_sizes(drafter, [2, 9], composed=False) == (1, 2, 3, 4, 6, 7, 12)
    assert drafter_sizes(drafter, [4], composed=True) == (1, 2, 4, 5, 8)
    assert drafter_sizes(ModelDrafter(model), [4], composed=False) == (1, 2)
    assert drafter_sizes(ModelDrafter(model), [4], composed=True) == (1, 2, 5)


def test_each_number_of_tokens_is_timed_up_to_what_it_drafts() -> None:
    model = make_model("llama")
    assert timed_lengths(ParallelDrafter(model, Masks(4, 6)), 4) == [1, 2, 3, 4]
    assert timed_lengths(ParallelDrafter(model, Masks(4, 3)), 8) == [1, 2, 3]
    assert timed_lengths(ModelDrafter(model), 8) == [1, 8]
    assert timed_lengths(PromptLookup(), 8) == [1, 8]


@pytest.mark.slow
def test_compiled_it_gives_the_eager_outputs(bench: Bench, masked: Path, tmp_path: Path) -> None:
    outputs = []
    for runtime in ("eager", "compiled"):
        folder = tmp_path / runtime
        words = ["--drafter", f"masked={masked}", "--decoding.runtime", runtime, "--output", str(folder)]
        main(bench(*words, drafters=()))
        records = read_run(folder).records
        outputs.append(
            {(record.method, record.temperature, record.order): record.token_ids for record in records}
        )
    assert outputs[0] == outputs[1]


def test_check_says_how_many_it_drafts(bench: Bench, masked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = bench("--drafter", f"masked={masked}", drafters=())
    main(["check", *words[1:]])
    assert "up to 3 tokens in one call (mask token: id 63)" in capsys.readouterr().out
    main(["check", *words[1:], "--decoding.gammas", "5"])
    assert "3 tokens at most in one call, as it was trained: not decoding.gammas = 5" in capsys.readouterr().out
    path = masked / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pard_token": 64}))
    with pytest.raises(UserError, match=r"pard_token = 64 is no id of model .*, which has 64"):
        main(words)
