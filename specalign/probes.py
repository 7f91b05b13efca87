"""What a run measures besides its generations: `probes.jsonl`, one probe a line, in the order of measurement.

Together with `records.jsonl` it is the raw truth of a run: docs/metrics.md says how every figure follows from both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from pydantic import ConfigDict

from specalign.records import DraftCounts

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class ModelProbe:
    """What a model's step reads and multiplies."""

    method: str
    """"target", or the drafter's name."""
    bytes_per_step: int
    """Bytes of weights that one decoding step must read."""
    n_multiplied: int
    """Parameters that every token is multiplied with."""
    kind: Literal["model"] = "model"
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class CopyProbe:
    """How fast this machine moves bytes."""

    bytes_per_s: float
    """Bytes read and written per second by copying a large tensor."""
    kind: Literal["copy"] = "copy"
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class CallProbe:
    """Repeated timings of one kind of call outside of any generation."""

    method: str
    """"target": one forward call on n_tokens positions; a drafter: drafting n_tokens tokens."""
    temperature: float | None
    """Of the drafter's sampling; None for the target, whose forward call knows none."""
    context: int
    """Tokens of the prompt before it."""
    n_tokens: int
    seconds: list[float]
    after: Literal["draft", "target", ""] = ""
    """Of the target on several tokens: what was called just before, a model's draft or the target itself."""
    n_accepted: int = 0
    """Of a draft: tokens accepted of the draft before, which the drafter reads first, with the one that followed."""
    kind: Literal["call"] = "call"
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class ForcedProbe:
    """A drafter against the target along one output of the plain target (teacher forcing)."""

    method: str
    prompt_id: str
    repeat: int
    temperature: float
    overlap: list[float | None]
    """sum_v min(p, q) before each output token; None where nothing would have been drafted."""
    turn: int = 0
    kind: Literal["forced"] = "forced"
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class SampledProbe:
    """A sampled output, read by the target itself in one call without a cache: where its tokens lie in p.

    p is the target's distribution before each token, at the temperature, top-k and top-p of the run; G(x) the mass of
    the tokens less likely than x, and half of x's own, in 0..1, with the mean 1/2 for x drawn from p.
    """

    method: str
    prompt_id: str
    repeat: int
    temperature: float
    gamma: int
    n_tokens: int
    observed: float
    """sum over tokens x of G(x)."""
    variance: float
    """sum over tokens of sum_v p(v) G(v)^2 - 1/4, the variance of G(x) for x drawn from p."""
    turn: int = 0
    kind: Literal["sampled"] = "sampled"
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class LoadProbe:
    """One method under load on a server: ``concurrency`` requests at a time, one following another's end."""

    method: str
    gamma: int
    concurrency: int
    n_failed: int
    n_tokens: list[int]
    """New tokens of each good request; the lists below are parallel to it."""
    first_s: list[float]
    """Seconds to the first token."""
    wall_s: list[float]
    """Seconds of the whole request."""
    total_s: float
    """Seconds from the first request to the last answer."""
    counts: DraftCounts | None = None
    """The server's counters over all of it; None where it drafts nothing."""
    kind: Literal["load"] = "load"
    __pydantic_config__ = _STRICT


Probe = ModelProbe | CopyProbe | CallProbe | ForcedProbe | SampledProbe | LoadProbe


def model_probes(probes: Sequence[Probe]) -> dict[str, ModelProbe]:
    """Method -> what its model's step reads and multiplies."""
    return {probe.method: probe for probe in probes if isinstance(probe, ModelProbe)}


def copy_rate(probes: Sequence[Probe]) -> float | None:
    """Bytes per second of copying: the median of the run's probes."""
    rates = [probe.bytes_per_s for probe in probes if isinstance(probe, CopyProbe)]
    return median(rates) if rates else None
