"""The runtimes of a benchmark run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specalign.benchmarks import runner
from specalign.benchmarks.cli import parse_run
from specalign.benchmarks.runtime import resolve_runtime, rounded_up
from specalign.errors import UserError
from specalign.models.packing import can_pack
from specalign.models.tiny import make_model
from specalign.run_files import RECORDS_FILE, read_records, read_result

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


def test_auto_is_what_each_device_is_fast_with() -> None:
    cpu, cuda, llama, t5 = torch.device("cpu"), torch.device("cuda"), make_model("llama"), make_model("t5")
    packed = "packed" if can_pack(torch.zeros(1, 1)) else "eager"
    assert resolve_runtime("auto", llama, torch.float32, cpu) == packed
    assert resolve_runtime("auto", llama, torch.float64, cpu) == "eager"
    assert resolve_runtime("auto", llama, torch.bfloat16, cuda) == "compiled"
    assert resolve_runtime("auto", llama, torch.bfloat16, cuda, quantized=True) == "eager"
    assert resolve_runtime("auto", t5, torch.bfloat16, cuda) == "eager"
    assert resolve_runtime("compiled", llama, torch.float64, cpu) == "compiled"


@pytest.mark.parametrize(
    ("dtype", "device"), [(torch.bfloat16, "cuda"), (torch.float32, "cuda"), (torch.float64, "cpu")]
)
def test_packed_is_refused_where_nothing_would_be_packed(dtype: torch.dtype, device: str) -> None:
    with pytest.raises(UserError, match=r"nothing can be packed for .* use decoding.runtime"):
        resolve_runtime("packed", make_model("llama"), dtype, torch.device(device))


def test_capacities_are_rounded_up() -> None:
    assert [rounded_up(n, 64) for n in (1, 64, 65)] == [64, 64, 128]
