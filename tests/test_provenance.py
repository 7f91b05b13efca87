"""What is stamped of the machine."""

import os
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from specalign import provenance
from specalign.provenance import BusyMeter, gpu_state, hardware


def test_the_stamp_says_where_and_how_busy() -> None:
    facts = hardware("cpu")
    assert facts["torch_threads"] == torch.get_num_threads()
    assert 0 <= facts["busy_before"] <= 1
    assert facts["load_1min"] >= 0
    assert set(facts["affinity"]) <= set(range(facts["cores"]))
    assert "gpu" not in facts


def test_others_are_what_is_neither_idle_nor_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 10 seconds of 2 cores: 8 idle, 9 ours, so 3 of 20 belong to others."""
    times = iter([(100.0, 40.0, 5.0), (120.0, 48.0, 14.0)])
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(provenance, "_processor_times", lambda: next(times))
    assert BusyMeter().others() == pytest.approx(3 / 20)


def test_the_share_of_others_is_a_share() -> None:
    load = BusyMeter()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    share = load.others()
    assert share is not None
    assert 0 <= share <= 1
    assert BusyMeter().others() is None, "too short to tell"


def test_what_a_gpu_tells_is_read_and_what_it_does_not_tell_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NVMLError(Exception):
        pass

    def refuse(device: torch.device) -> int:
        raise NVMLError("Not Supported")

    nvml = {"NVMLError": NVMLError, "nvmlInit": lambda: None, "nvmlSystemGetDriverVersion": lambda: "580.1"}
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**nvml))
    for name, read in {
        "clock_rate": lambda device: 1980,
        "utilization": lambda device: 3,
        "power_draw": refuse,
        "temperature": lambda device: 41,
    }.items():
        monkeypatch.setattr(torch.cuda, name, read)
    found = {"gpu_clock_mhz": 1980, "gpu_busy_before_percent": 3, "gpu_temperature_c": 41}
    assert gpu_state("cuda:0") == {"gpu_driver": "580.1"} | found
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_state("cuda:0") == {"gpu_unread": "nvidia-ml-py is not installed"}


def test_what_reads_a_gpu_is_a_dependency() -> None:
    """Without it clocks, power and driver would be missing from every result of a GPU."""
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert any(name.startswith("nvidia-ml-py") for name in pyproject["project"]["dependencies"])


def test_a_notebooks_kernel_is_not_the_users_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/x/ipykernel_launcher.py", "-f", "/home/somebody/kernel.json"])
    assert provenance.command() == ["notebook"]
    monkeypatch.setattr("sys.argv", ["/x/specalign-train", "--method", "gkd"])
    assert provenance.command() == ["specalign-train", "--method", "gkd"]
