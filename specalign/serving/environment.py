"""What talking to vLLM needs on our side, looked at without importing any of it."""

from __future__ import annotations

import os
from importlib.util import find_spec

from specalign.errors import UserError

PYTHON_VARIABLE = "SPECALIGN_VLLM_PYTHON"


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
