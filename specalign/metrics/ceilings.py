"""What a step must at least cost: bytes that it reads, numbers that it multiplies."""

from __future__ import annotations

from collections.abc import Iterable

from specalign.records import StepTrace


def memory_bound_speedup(tau: float, gamma: int, c: float) -> float:
    """MBSU = tau / (gamma c + 1): the speed-up if time were the bytes of weights read.

    Goel et al. 2024 (arXiv:2403.00858). ``c`` is the drafter's bytes a step over the target's (of one dtype:
    the ratio of parameters), 0 for a drafter without weights; gamma whole drafts are assumed.
    """
    return tau / (gamma * c + 1)


def flop_ratio(traces: Iterable[StepTrace], target: int, drafter: int) -> float | None:
    """Multiplications per emitted token, speculative over plain.

    A step that drafts n tokens multiplies n tokens with ``drafter`` parameters and n + 1 with ``target``; a plain
    step one with ``target`` (Leviathan et al. 2023, theorem 3.11, with counts in place of expectations).
    Attention over the context is left out. None without emitted tokens.
    """
    work = n_emitted = 0
    for trace in traces:
        n_drafted = sum(trace.n_drafted)
        work += n_drafted * drafter + (n_drafted + len(trace.n_drafted)) * target
        n_emitted += sum(trace.n_emitted)
    return work / (n_emitted * target) if n_emitted * target else None


def least_seconds(traces: Iterable[StepTrace], target: int, drafter: int, bytes_per_s: float) -> float:
    """Seconds that the steps take if each only reads its weights: ``target`` bytes, and ``drafter`` a draft."""
    n_bytes = sum(len(trace.n_drafted) * target + sum(trace.n_drafted) * drafter for trace in traces)
    return n_bytes / bytes_per_s
