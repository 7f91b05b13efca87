"""The real vLLM with the real SmolLM2 and an aligned 4-layer slice: make test-vllm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specalign.benchmarks.cli import parse_run
from specalign.benchmarks.runner import run
from specalign.benchmarks.served import run_served
from specalign.errors import UserError
from specalign.results import BenchmarkResult, SummaryRow
from specalign.serving.environment import PYTHON_VARIABLE
from specalign.serving.server import require_vllm, serving
from specalign.training.cli import configs
from specalign.training.materials import load_materials
from specalign.training.session import train_all

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SUITE = """--include --data.limit 4 --data.max-prompt-tokens 120 --decoding.temperatures 0 --decoding.gammas 3
--decoding.max-new-tokens 64 --device cpu --target.dtype float32"""
VLLM = "--engine vllm --engine-arguments=--enforce-eager"


@pytest.fixture(scope="module")
def python() -> str:
    if PYTHON_VARIABLE not in os.environ:
        pytest.fail(f"{PYTHON_VARIABLE} names no Python with vLLM; make test-vllm sets it")
    return os.environ[PYTHON_VARIABLE]


@pytest.fixture(scope="module")
def slice_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-layer slice of SmolLM2, aligned on a few of its own texts."""
    folder = tmp_path_factory.mktemp("slice") / "aligned"
    words = f"--method aligned --student.n-layers 4 --student.align-tokens 6000 --device cpu --output {folder}"
    train_all(configs(words.split()))
    return folder


@pytest.fixture(scope="module")
def results(
    python: str, slice_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BenchmarkResult, BenchmarkResult]:
    """The suite on our engine and on vLLM."""
    root = tmp_path_factory.mktemp("runs")
    words = [*SUITE.split(), "--drafter", f"aligned={slice_folder}"]
    ours = run(parse_run([*words, "--output", str(root / "own")]))
    theirs = run_served(
        parse_run([*words, *VLLM.split(), "--engine-python", python, "--output", str(root / "vllm")])
    )
    return ours, theirs


def drafted(result: BenchmarkResult) -> SummaryRow:
    (row,) = (row for row in result.rows if row.method == "aligned")
    return row


def test_plain_and_speculative_greedy_outputs_agree(results: tuple[BenchmarkResult, BenchmarkResult]) -> None:
    row = drafted(results[1])
    assert row.n_effective == 4
    assert row.n_unexplained_divergences == 0
    checks = {check.name: check.passed for check in results[1].checks}
    assert checks["token accounting"]
    assert checks["samples"]


def test_acceptance_agrees_with_our_engines_within_two_points(
    results: tuple[BenchmarkResult, BenchmarkResult],
) -> None:
    ours, theirs = (drafted(result).alpha_counted for result in results)
    assert ours is not None
    assert theirs is not None
    assert abs(ours.value - theirs.value) <= 0.02


def test_a_missing_model_is_one_clear_line(python: str, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"vLLM did not start: .+") as told,
        serving(python, ["--model", str(tmp_path / "missing")], tmp_path / "log"),
    ):
        pass
    assert "\n" not in str(told.value)


def test_the_environment_has_a_vllm_that_is_new_enough(python: str) -> None:
    assert require_vllm(python).startswith("0.")


def test_the_teachers_responses_are_our_own_engines(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path))
    words = f"--method seqkd --data.n-train 6 --data.n-validation 1 --device cpu --output {tmp_path / 'run'}".split()
    served = [
        *words,
        "--rollout-engine",
        "vllm",
        "--engine-python",
        python,
        "--engine-arguments=--enforce-eager",
    ]
    ours, theirs = (load_materials(configs(each)[0]).responses("train") for each in (words, served))
    same = sum(ours[name] == theirs[name] for name in ours)
    assert same >= len(ours) - 1  # rounding may turn one at a tie
    assert any(len(ids) < 48 for ids in theirs.values())  # a text that ends, with its end
