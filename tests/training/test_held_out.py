"""The test split: shared with nothing, unmoved by others' sizes, and scored once, by the student that is written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from specalign.analysis.held_out import read_scores
from specalign.training.config import TrainConfig
from specalign.training.folder import read_log, read_provenance
from specalign.training.materials import load_data, load_materials
from specalign.training.session import train_all
from specalign.training.setup import start_run
from specalign.training.validation import make_validation

Tiny = Callable[..., TrainConfig]


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    path = tmp_path / "all.jsonl"
    rows = [{"document": " ".join(f"w{(i * 7 + j) % 60}" for j in range(4 + i % 5))} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_no_document_is_in_two_parts_and_none_moves_with_anothers_size(tiny: Tiny, one_file: Path) -> None:
    def parts(**sizes: int) -> dict[str, list[str]]:
        data = tiny(data={"source": str(one_file), **sizes}).data
        return {
            split: [example.document for example in examples] for split, examples in load_data(data).items()
        }

    whole = parts(n_test=4, n_validation=4)
    assert not set(whole["test"]) & set(whole["validation"])
    assert not set(whole["train"]) & {*whole["test"], *whole["validation"]}
    assert parts(n_test=4, n_validation=2, n_train=3)["test"] == whole["test"]
    assert parts(n_test=2, n_validation=4)["validation"] == whole["validation"]
    assert "test" not in parts(n_validation=4)


@pytest.mark.parametrize("method", ["seqkd", "aligned"])
def test_the_written_student_is_scored_on_each_test_prompt(tiny: Tiny, one_file: Path, method: str) -> None:
    config = tiny(method, data={"source": str(one_file), "n_test": 4}, logging={"probe_gamma": 2})
    train_all([config])
    scores = read_scores(config.output / "held_out.jsonl")
    assert len({score.prompt_id for score in scores}) == len(scores) == 4
    assert {score.gamma for score in scores} == {2}
    assert read_provenance(config.output)["data"]["n_test"] == 4
    data = {"source": str(one_file), "n_test": 4}
    again = tiny("untrained", student={"model": str(config.output)}, data=data, logging={"probe_gamma": 2})
    materials = load_materials(again)
    run = start_run(again, materials)
    test = make_validation(materials, "test").score(run.pair)
    n = sum(score.n_positions for score in scores)
    assert test.n_positions == n
    assert sum(score.alpha * score.n_positions for score in scores) / n == pytest.approx(test.alpha, rel=1e-5)
    assert sum(score.agreement * score.n_positions for score in scores) / n == pytest.approx(
        test.agreement, rel=1e-5
    )


def test_nothing_is_scored_unasked(tiny: Tiny) -> None:
    config = tiny("aligned")
    train_all([config])
    assert not (config.output / "held_out.jsonl").exists()
    assert {line["kind"] for line in read_log(config.output)} == {"validation"}
