"""What talking to vLLM needs on our side, looked at without importing any of it."""

from __future__ import annotations

import math
import os
from importlib.util import find_spec

from specalign.errors import UserError

PYTHON_VARIABLE = "SPECALIGN_VLLM_PYTHON"
START_VARIABLE = "SPECALIGN_VLLM_START_S"
START_S = 600.0
"""Longest wait for a server to load its models, in seconds, where the variable says nothing else."""


def require_client() -> None:
    """Raise UserError where the packages that talk to a server are missing."""
    if find_spec("prometheus_client") is None or find_spec("requests") is None:
        raise UserError("engine.name = vllm needs two more packages: pip install 'specalign[vllm]'")


def vllm_python(named: str) -> str:
    """The Python of vLLM's environment: ``named``, else by $SPECALIGN_VLLM_PYTHON; UserError where none is named."""
    python = named or os.environ.get(PYTHON_VARIABLE, "")
    if not python:
        raise UserError(
            f"name vLLM's Python by --engine-python or ${PYTHON_VARIABLE}, or a server by --endpoint"
        )
    return python


def start_limit() -> float:
    """Longest wait for a server to load its models, in seconds; UserError where the variable says none above 0."""
    told = os.environ.get(START_VARIABLE, "")
    try:
        limit = float(told or START_S)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise UserError(f"${START_VARIABLE} must be seconds above 0, not {told!r}")
    return limit
