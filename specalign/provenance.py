"""What produced a result: code, packages, machine, inputs. Stamped before a run, so that a crash leaves it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from specalign import __version__
from specalign.files import file_sha256

KERNELS = ("ipykernel_launcher.py", "colab_kernel_launcher.py")
PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "safetensors", "bitsandbytes", "flash-attn")


def stamp(device: str = "cpu") -> dict[str, Any]:
    """Version, git state, packages, hardware and time of the run that calls it."""
    return {
        "specalign": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "hardware": hardware(device),
        "command": command(),
    }


def command() -> list[str]:
    """The words that this process was started with; a notebook's kernel has none of its user's."""
    program = Path(sys.argv[0]).name
    return ["notebook"] if program in KERNELS else [program, *sys.argv[1:]]


LEAST_LOAD_S = 0.25
"""The kernel counts processor time in hundredths of a second: a share of less than this tells nothing."""


class BusyMeter:
    """How much of the processor's time others take, from its making on."""

    def __init__(self) -> None:
        self.begin = _processor_times()

    def others(self) -> float | None:
        """Their share of the seconds of all cores, 0 to 1: whatever is neither idle nor this process.

        None where less than LEAST_LOAD_S have passed on each core.
        """
        total, idle, ours = (now - then for now, then in zip(_processor_times(), self.begin, strict=True))
        if total < LEAST_LOAD_S * (os.cpu_count() or 1):
            return None
        return min(1.0, max(0.0, (total - idle - ours) / total))


def _processor_times() -> tuple[float, float, float]:
    """Seconds since boot of all cores, of these idle, and of this process and its children."""
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user and nice too
    return sum(times) - guests, idle, sum(psutil.Process().cpu_times()[:4])


def git_state() -> dict[str, Any]:
    """Commit of the source tree and whether it has uncommitted changes; empty outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {}
    commit = _git(root, "rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))} if commit else {}


def hardware(device: str) -> dict[str, Any]:
    """Processor, cores, memory, threads, affinity, load; name and clocks of the accelerator, if ``device`` is one.

    ``busy_before`` is the share of the processor's time that others take, over half a second of our own sleep.
    """
    import psutil
    import torch

    facts: dict[str, Any] = {
        "device": device,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "busy_before": psutil.cpu_percent(interval=0.5) / 100,
        "torch_threads": torch.get_num_threads(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(device))
        facts |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
            **gpu_state(device),
        }
    return facts


def gpu_state(device: str) -> dict[str, Any]:
    """Driver, clock, load, power and temperature of a GPU, only read; what NVML does not tell is left out.

    Where nvidia-ml-py, NVIDIA's own binding, is not installed, that is what is said.
    """
    try:
        from pynvml import NVMLError, nvmlInit, nvmlSystemGetDriverVersion
    except ModuleNotFoundError:
        return {"gpu_unread": "nvidia-ml-py is not installed"}
    import torch

    readings = {
        "gpu_clock_mhz": torch.cuda.clock_rate,
        "gpu_busy_before_percent": torch.cuda.utilization,
        "gpu_power_mw": torch.cuda.power_draw,
        "gpu_temperature_c": torch.cuda.temperature,
    }
    found: dict[str, Any] = {}
    with suppress(NVMLError):
        nvmlInit()
        found["gpu_driver"] = nvmlSystemGetDriverVersion()
    for name, read in readings.items():
        with suppress(NVMLError, RuntimeError):
            found[name] = read(torch.device(device))
    return found


def references_sha256(references: Iterable[tuple[str, str]]) -> str:
    """One hash over (prompt's id, reference), in the order of the prompts."""
    return hashlib.sha256(json.dumps([list(pair) for pair in references]).encode()).hexdigest()


def weights_sha256(folder: Path) -> str:
    """One hash over a checkpoint's safetensors files and its draft vocabulary, in name order; empty without any."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("draft_vocabulary/*.safetensors")])
    joined = "".join(f"{file.name}:{file_sha256(file)};" for file in files)
    return hashlib.sha256(joined.encode()).hexdigest() if files else ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
