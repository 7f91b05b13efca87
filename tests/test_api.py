"""specalign from Python: the command's own runs, over rows and losses at hand, quiet, and light to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import specalign
from specalign.analysis.audit import audit
from specalign.benchmarks.at_hand import at_hand
from specalign.config import load_config, write_config
from specalign.data.sources import load_splits
from specalign.given import source_of
from specalign.losses import tvd
from specalign.training.cli import main
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials
from tests.conftest import WORDS
from tests.training.conftest import data_folder, teacher_folder, tiny

__all__ = ["data_folder", "teacher_folder", "tiny"]
Tiny = Callable[..., TrainConfig]
Options = dict[str, Any]


def row(number: int, n_words: int = 6) -> dict[str, str]:
    return {
        "document": " ".join(WORDS[(number * 7 + j) % 60] for j in range(n_words)),
        "reference": " ".join(WORDS[(number * 5 + j) % 60] for j in range(4)),
    }


ROWS = [row(number) for number in range(20)]


@pytest.fixture
def options(teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """Of a training run that takes a second."""
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path / "cache"))
    return {
        "method": "distillspec",
        "output": tmp_path / "run",
        "device": "cpu",
        "teacher": {"model": str(teacher_folder), "dtype": "float32"},
        "student": {"n_layers": 2, "align_tokens": 100},
        "data": {"prompt": "w1 {document} w2", "max_prompt_tokens": 16, "max_response_tokens": 6},
        "rollout.batch": 4,
        "optimiser": {"batch": 2, "accumulation": 1, "lr": 3e-3},
        "logging": {"every": 1, "validate_every": 2, "checkpoint_every": 2},
        "budget.steps": 4,
    }


@pytest.fixture
def suite(teacher_folder: Path, tmp_path: Path) -> Options:
    """Of a benchmark that takes a second."""
    return {
        "output": tmp_path / "bench",
        "device": "cpu",
        "target.model": str(teacher_folder),
        "data": {"prompt": "w1 {document} w2", "max_prompt_tokens": 16},
        "decoding": {"gammas": [2], "max_new_tokens": 8, "runtime": "eager", "temperatures": [0.0, 1.0]},
    }


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_importing_it_is_light_and_finds_everything() -> None:
    code = (
        "import sys, specalign\n"
        "print([n for n in ('torch', 'transformers', 'pandas', 'tyro', 'specalign.api') if n in sys.modules])\n"
        "specalign.train, specalign.benchmark, specalign.TrainConfig, specalign.UserError\n"
        "print([n for n in ('torch', 'transformers', 'pandas', 'datasets', 'matplotlib') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
    assert all(getattr(specalign, name) is not None for name in specalign.__all__)
    assert set(specalign.__all__) <= set(dir(specalign))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        specalign.trian  # noqa: B018


def test_a_run_from_python_is_the_commands_own(
    options: Options, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weight by weight; and the command finds it complete, by the recipe that it left."""
    student = specalign.train(options, data=ROWS)
    assert capfd.readouterr() == ("", "")
    assert any("holds out" in line or "held out" in line for line in student.messages)
    assert any("distillspec trained, 4 steps" in line for line in student.messages)
    main(["--recipe", str(student.path / "recipe.toml"), "--output", str(tmp_path / "other")])
    for name, value in weights(student.path).items():
        assert torch.equal(value, weights(tmp_path / "other")[name])
    capfd.readouterr()
    main(["--recipe", str(student.path / "recipe.toml"), "--output", str(student.path)])
    assert "complete already" in capfd.readouterr().out


def test_what_is_returned_has_the_log_the_facts_and_the_model(options: Options) -> None:
    student = specalign.train(options, data=ROWS)
    lines = [json.loads(line) for line in (student.path / "train.jsonl").read_text().splitlines()]
    assert student.log["step"].tolist() == [line["step"] for line in lines]
    assert student.facts["steps"] == 4
    assert os.fspath(student) == str(student.path)
    assert sum(value.numel() for value in student.load("cpu").parameters()) > 0
    assert "distillspec" in student._repr_html_()
    assert student.curves._repr_png_().startswith(b"\x89PNG")


def test_not_quiet_is_the_commands_output(options: Options, capfd: pytest.CaptureFixture[str]) -> None:
    student = specalign.train(options, data=ROWS, quiet=False)
    assert "[validation 4]" in capfd.readouterr().out
    assert student.messages == ()


def test_other_rows_or_another_objective_are_another_run(options: Options) -> None:
    def own(student: Tensor, teacher: Tensor, *, labels: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return scale * tvd(student, teacher)

    first = specalign.train(options, data=ROWS, objective=own)
    before = (first.path / "model.safetensors").stat().st_mtime_ns
    again = specalign.train(options, data=iter(ROWS), objective=own)
    assert (again.path / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(specalign.UserError, match=r"holds a run with data.source = .*, or use --overwrite"):
        specalign.train(options, data=ROWS[1:], objective=own)
    with pytest.raises(specalign.UserError, match=r"holds a run with objective\.plugin ="):
        specalign.train(options, data=ROWS)

    def changed(student: Tensor, teacher: Tensor, *, labels: Tensor | None = None) -> Tensor:
        return 2 * tvd(student, teacher)

    changed.__qualname__ = own.__qualname__
    with pytest.raises(specalign.UserError, match=r"the objective's source of .* changed"):
        specalign.train(options, data=ROWS, objective=changed)
    specalign.train(options | {"overwrite": True}, data=ROWS[1:])


def test_an_objective_of_ones_own_is_what_is_trained_with(options: Options, tmp_path: Path) -> None:
    def own(student: Tensor, teacher: Tensor, *, labels: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return scale * tvd(student, teacher)

    table = {"objective.weights": {"tvd": 1.0}, "output": tmp_path / "table"}
    one = specalign.train(options | table, data=ROWS)
    two = specalign.train(options, data=ROWS, objective=own)
    for name, value in weights(one.path).items():
        torch.testing.assert_close(value, weights(two.path)[name])
    half = {"objective": {"hyper": {"scale": 0.5}}, "output": tmp_path / "half"}
    three = specalign.train(options | half, data=ROWS, objective=own)
    assert three.log["kd"].dropna().iloc[0] == pytest.approx(two.log["kd"].dropna().iloc[0] / 2)
    config = TrainConfig(output=tmp_path / "config")
    with pytest.raises(specalign.UserError, match=r"not among objective.weights \(tvd=1\): add plugin=1"):
        specalign.train(options | {"objective.weights": {"tvd": 1}}, data=ROWS, objective=own)
    assert not config.output.exists()


def test_a_recipe_and_a_config_are_taken_too(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("sft", output=tmp_path / "a")
    recipe = tmp_path / "recipe.toml"
    write_config(recipe, tiny("sft", output=tmp_path / "b"))
    one, two = specalign.train(config), specalign.train(recipe)
    three = specalign.train({"recipe": recipe, "output": tmp_path / "c", "seed": 3})
    for name, value in weights(one.path).items():
        assert torch.equal(value, weights(two.path)[name])
    assert three.facts["seed"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimiser.lrr": 1}, r"train\(\): unknown key 'optimiser.lrr'; did you mean 'optimiser.lr'"),
        ({"optimiser": {"batch": 0}}, "optimiser.batch must be at least 1, not 0"),
        ({"optimiser": 3}, "optimiser"),
        ({"method": "gdk"}, "did you mean 'gkd'"),
        ({"recipe": "nowhere.toml"}, "no such file: nowhere.toml"),
        ({"compare": ["sft", "gkd"]}, "has 2 runs .*: train them by the command"),
        ({"sweep": ["optimiser.lr=1,2,3"]}, "has 3 runs"),
        (3, "a config is a path, options or a TrainConfig, not of type int"),
    ],
)
def test_mistakes_are_one_line(options: Any, message: str) -> None:
    with pytest.raises(specalign.UserError, match=message) as caught:
        specalign.train(options)
    assert "\n" not in str(caught.value)


def test_rows_go_through_the_reader_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path))
    frame = pd.DataFrame([*ROWS, {"document": "w1 w2 w3"}])  # whose reference is missing
    expected = load_splits(source_of([*ROWS, {"document": "w1 w2 w3", "reference": None}]), {"train": None})
    assert load_splits(source_of(frame), {"train": None}) == expected
    assert source_of(row for row in ROWS) == source_of(ROWS)
    texts = load_splits(source_of([row["document"] for row in ROWS]), {"train": None, "validation": None})
    assert {each.document for split in texts.values() for each in split} <= {row["document"] for row in ROWS}
    splits = {"train": ROWS[:12], "validation": ROWS[12:]}
    found = load_splits(source_of(splits), {"train": None, "validation": None})
    assert [each.document for each in found["validation"]] == [row["document"] for row in ROWS[12:]]
    assert source_of(splits) != source_of({"train": ROWS[:11], "validation": ROWS[12:]})
    assert source_of("cnn_dailymail") == "cnn_dailymail"
    assert source_of(Path("x.jsonl")) == "x.jsonl"


def test_conversations_and_prompts_are_rows_too(
    options: Options, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run over prompts that are token ids is the run over the texts that they come from."""
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path / "cache"))
    talk = [
        [{"role": "user", "content": row["document"]}, {"role": "assistant", "content": row["reference"]}]
        for row in ROWS
    ]
    found = load_splits(source_of(talk), {"train": None, "validation": None, "test": None})
    assert sorted(each.messages[0]["content"] for split in found.values() for each in split) == sorted(
        row["document"] for row in ROWS
    )
    splits = {"train": ROWS[:12], "validation": ROWS[12:]}
    texts = specalign.train(options | {"output": tmp_path / "texts"}, data=splits)
    materials = load_materials(replace(load_config(TrainConfig, texts.path / "recipe.toml"), overwrite=False))
    prompts = {"train": materials.train, "validation": materials.validation}
    ids = specalign.train(options | {"output": tmp_path / "ids"}, data=prompts)
    for name, value in weights(texts.path).items():
        assert torch.equal(value, weights(ids.path)[name])
    assert load_materials(load_config(TrainConfig, ids.path / "recipe.toml")).train == materials.train


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [5, 6, 999]}, "token id 999 is none of the tokenizer's"),
        (
            {"input_ids": [5] * 17},
            "has 17 tokens, more than max_prompt_tokens = 16, and token ids are never cut",
        ),
        ({"input_ids": ["a"]}, "column 'input_ids' is no list of token ids"),
        ({"input_ids": []}, "column 'input_ids' is empty"),
    ],
)
def test_token_ids_that_are_none_are_named(options: Options, row: Options, message: str) -> None:
    good = [{"input_ids": [5, 6, 7 + n]} for n in range(9)]
    with pytest.raises(specalign.UserError, match=message):
        specalign.train(options, data={"train": [*good, row], "validation": [{"input_ids": [9, 9]}]})


def generated() -> Iterator[object]:
    yield ROWS[0]
    yield object()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (generated(), "row 2 of the data handed over: .* not of type object"),
        ([{"document": {1, 2}}], "row 1 of the data handed over: set is nothing that JSON has"),
        ([{"document": "x", "score": float("inf")}], "row 1"),
        ([], "has no rows"),
        ({"trian": ROWS}, "unknown split of data 'trian'; did you mean 'train'"),
        ({"train": []}, "has no rows"),
    ],
)
def test_data_that_are_none_are_named(data: Any, message: str) -> None:
    with pytest.raises(specalign.UserError, match=message):
        source_of(data)


def test_a_benchmark_of_students_over_prompts_at_hand(
    options: Options, suite: Options, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    students = [
        specalign.train(options | {"output": tmp_path / name, "method": name}, data=ROWS)
        for name in ("aligned", "distillspec")
    ]
    result = specalign.benchmark(suite, prompts=ROWS[:5], drafters=students)
    assert capfd.readouterr() == ("", "")
    rows = result.rows
    assert set(rows["method"]) == {"target", "prompt_lookup", "aligned", "distillspec"}
    assert (rows["n_effective"] == 5).all(), "all prompts that were handed over"
    written = json.loads((result.path / "result.json").read_text())
    assert rows["tau.value"].dropna().tolist() == [
        each["tau"]["value"] for each in written["rows"] if each["tau"]
    ]
    assert len(result.records()) == written["n_effective"]
    assert not audit(result.path, at_hand(result.path)).problems, "it verifies as the command's runs do"
    again = specalign.benchmark(suite, prompts=ROWS[:5], drafters={each.path.name: each for each in students})
    assert any("is complete already" in line for line in again.messages)
    assert result.report().read_text().startswith("# Speculative decoding")
    assert list(result.table.columns)[:2] == ["method", "γ"]
    assert "distillspec" in result._repr_html_()
    assert result.verdict.startswith("Temperature 0:") or "Temperature 0:" in result.verdict
    picture = result.plots["speedup"]
    assert picture._repr_png_().startswith(b"\x89PNG")
    for ending in ("png", "svg", "pdf"):
        assert picture.save(tmp_path / f"picture.{ending}").stat().st_size > 1000
    with pytest.raises(specalign.UserError, match="saved as one of png, svg, pdf"):
        picture.save("picture.bmp")


def test_a_suite_file_is_taken_too(options: Options, suite: Options, tmp_path: Path) -> None:
    student = specalign.train(options, data=ROWS)
    path = tmp_path / "small.toml"
    path.write_text("[decoding]\ngammas = [3]\n")
    more = suite | {"suite": path, "decoding.temperatures": [0.0], "data.limit": 2, "include": []}
    more.pop("decoding")
    result = specalign.benchmark(more, prompts=ROWS, drafters={"d": student})
    assert result.result.suite == "small"
    assert result.rows["gamma"].tolist() == [0, 3]
    assert (result.rows["n_effective"] == 2).all()
    with pytest.raises(specalign.UserError, match="two drafters' folders have the same name"):
        specalign.benchmark(suite, prompts=ROWS, drafters=[student, student])
    with pytest.raises(specalign.UserError, match=r"benchmark\(\): unknown key 'decoding.gamma'"):
        specalign.benchmark({"decoding": {"gamma": 3}})
