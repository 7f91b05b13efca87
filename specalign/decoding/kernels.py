"""How a decoding step is compiled: its graph, and on a CPU the kernels of its matrix products."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from typing import Any

import torch
from torch import nn

ISOLATES = "isolate_recompiles" in signature(torch.compile).parameters
"""Whether each compiled function has a cache of graphs of its own (torch >= 2.13)."""
MOST_GRAPHS = 256
"""Graphs of one process where it has not."""
TEMPLATE, ALL_KERNELS = "CPP", "CPP,ATEN"
"""Kernels for products on a CPU: inductor's own template, which reads weights at the memory's speed, or oneDNN's too,
which win by inductor's clock, since the weights are in the processor's cache there (benchmarks/README.md)."""
FEW_ROWS, FEWER_ROWS = 8, 4
"""Rows up to which the template costs about what one row does: it alone, where it can do all of the graph's products.
Its kernel keeps three vectors a row, which GCC leaves in memory from five rows on unless told, five times as slow."""
IN_REGISTERS = (
    "-fno-tree-loop-distribute-patterns",
    "--param=max-completely-peel-times=64",
    "--param=max-completely-peeled-insns=2000",
)
"""GCC's flags that unroll the loop which zeroes a kernel's sums, not a memset: then they need no address."""


def compile_step(step: nn.Module, device: torch.device) -> Callable[..., Any]:
    """``step``, to be traced by its first calls: under CUDA graphs on a GPU.

    On a CPU a call is checked for its tensors alone: going through a model's attributes takes a drafter a sixth of its
    time. That needs a cache of graphs for each function, since nothing else tells two models of one shape apart.
    """
    options: dict[str, Any] = {"isolate_recompiles": True} if ISOLATES else {}
    if device.type == "cuda":
        options["mode"] = "reduce-overhead"
    elif ISOLATES:
        options["options"] = {"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}
    return torch.compile(step, dynamic=False, fullgraph=True, **options)


def trace(feed: Callable[[], object], device: torch.device, n_rows: int) -> None:
    """Compile what ``feed`` calls, which multiplies ``n_rows`` rows by every weight; it runs twice."""
    if device.type == "cpu" and n_rows <= (FEW_ROWS if _architecture() else FEWER_ROWS):
        with suppress(torch._dynamo.exc.BackendCompilerFailed), _compiler_settings(device, TEMPLATE):
            feed()
            feed()
            return
    with _compiler_settings(device, ALL_KERNELS):
        feed()
        feed()


@contextmanager
def _compiler_settings(device: torch.device, kernels: str) -> Iterator[None]:
    """On a CPU, constants may be frozen into the graph and packed for inductor's matrix ``kernels``.

    Every size of every model is a graph: where they share one cache (torch < 2.13), it must hold them all.
    """
    with torch._dynamo.config.patch({} if ISOLATES else {"recompile_limit": MOST_GRAPHS}):
        if device.type != "cpu":
            yield
            return
        with _packed_for_cpu(kernels):
            yield


@contextmanager
def _packed_for_cpu(kernels: str) -> Iterator[None]:
    from torch._inductor import config

    settings: dict[str, object] = {
        "freezing": True,
        "max_autotune": True,
        "max_autotune_gemm_backends": kernels,
        "autotune_num_choices_displayed": 0,
    }
    if architecture := _architecture():
        settings["cpp.march"] = architecture
    with config.patch(settings), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "TypedStorage is deprecated"
        )  # inductor's own, while it packs weights
        yield


def _architecture() -> str | None:
    """What inductor writes behind ``-march=``, with :data:`IN_REGISTERS`; None where that is not GCC's to read.

    Inductor takes no other flags; it asks for ``native`` itself on these processors.
    """
    from torch._inductor import config, cpp_builder

    if platform.machine() not in ("x86_64", "AMD64") or getattr(config.cpp, "march", "") is not None:
        return None
    if not cpp_builder.is_gcc():
        return None
    return " ".join(["native", *IN_REGISTERS])
