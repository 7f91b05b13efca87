"""Speculative decoding under load: what the cost model says of batches, and where it stops to pay."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np


def step_seconds(plain: Mapping[int, float], n_tokens: float) -> float:
    """T_target(n): seconds of a target call on n tokens, from plain steps measured at several batch sizes.

    ``plain``: tokens of a call (that is, requests at a time) -> seconds. On straight lines between the measured
    ones, along the last line beyond them; constant where only one was measured.
    """
    sizes = sorted(plain)
    if len(sizes) > 1 and n_tokens > sizes[-1]:
        low, high = sizes[-2:]
        slope = (plain[high] - plain[low]) / (high - low)
        return plain[high] + max(0.0, slope) * (n_tokens - high)
    return float(np.interp(n_tokens, sizes, [plain[size] for size in sizes]))


def fitted_draft_ratio(plain: Mapping[int, float], batch: int, gamma: int, step_s: float) -> float:
    """c = T_draft(B) / T_target(B) that explains a speculative step of ``step_s`` seconds at batch B; at least 0.

    step = gamma c T_target(B) + T_target(B (gamma + 1)), overheads counted as the drafter's.
    """
    drafting = step_s - step_seconds(plain, batch * (gamma + 1))
    return max(0.0, drafting / (gamma * step_seconds(plain, batch)))


def predicted_batch_speedup(
    plain: Mapping[int, float], batch: int, gamma: int, *, tau: float, c: float
) -> float:
    """Decode speed-up at batch B: tau T(B) / (gamma c T(B) + T(B (gamma + 1))).

    A request gets tau tokens a step; the target's call is on B (gamma + 1) tokens instead of B.
    """
    target_s = step_seconds(plain, batch)
    return tau * target_s / (gamma * c * target_s + step_seconds(plain, batch * (gamma + 1)))


def crossover(speedups: Mapping[int, float]) -> float | None:
    """Requests at a time at which the speed-up falls through 1, between measured ones on a logarithmic scale.

    None where it does not: it is above 1 throughout, or never above.
    """
    points = sorted(speedups.items())
    for (low, before), (high, after) in itertools.pairwise(points):
        if before > 1 >= after:
            return math.exp(math.log(low) + (before - 1) / (before - after) * math.log(high / low))
    return None


def percentiles_ms(seconds: Sequence[float]) -> list[float]:
    """p50, p95 and p99 in milliseconds, with linear interpolation; empty for none."""
    return [float(1000 * value) for value in np.percentile(seconds, (50, 95, 99))] if seconds else []
