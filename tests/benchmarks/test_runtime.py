"""The runtimes of a benchmark run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specalign.benchmarks import runner
from specalign.benchmarks.cli import parse_run
from specalign.benchmarks.runtime import resolve_runtime, rounded_up
from specalign.models.packing import can_pack
from specalign.results import RECORDS_FILE, read_records, read_result

Bench = Callable[..., list[str]]
FEW = ["--decoding.temperatures", "0", "--data.limit", "2"]


def outputs(bench: Bench, folder: Path, runtime: str) -> dict[tuple[str, str], list[int]]:
    words = bench(*FEW, "--decoding.runtime", runtime, "--output", str(folder), drafters=("small",))
    runner.run(parse_run(words[1:]))
    assert read_result(folder).provenance["runtime"] == runtime
    return {
        (record.method, record.prompt_id): record.token_ids for record in read_records(folder / RECORDS_FILE)
    }


@pytest.mark.parametrize("runtime", ["packed", pytest.param("compiled", marks=pytest.mark.slow)])
def test_every_runtime_gives_the_eager_outputs(bench: Bench, tmp_path: Path, runtime: str) -> None:
    assert outputs(bench, tmp_path / runtime, runtime) == outputs(bench, tmp_path / "eager", "eager")


def test_auto_packs_what_can_be_packed_and_leaves_the_rest_eager() -> None:
    cpu = torch.device("cpu")
    expected = "packed" if can_pack(torch.zeros(1, 1)) else "eager"
    assert resolve_runtime("auto", torch.float32, cpu) == expected
    assert resolve_runtime("auto", torch.float64, cpu) == "eager"
    assert resolve_runtime("auto", torch.float32, torch.device("meta")) == "eager"
    assert resolve_runtime("compiled", torch.float64, cpu) == "compiled"


def test_capacities_are_rounded_up() -> None:
    assert [rounded_up(n, 64) for n in (1, 64, 65)] == [64, 64, 128]
