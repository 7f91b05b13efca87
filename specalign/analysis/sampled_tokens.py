"""The sampler test of a run: what its own generations say about the rule that made them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from specalign.analysis.summary import Group
from specalign.metrics.comparisons import holm
from specalign.metrics.sampled_tokens import Moments, acceptance_moments, total
from specalign.probes import Probe, SampledProbe
from specalign.records import GenerationRecord


@dataclass(frozen=True)
class SamplerTest:
    """One row's tokens, or its acceptances, against what a faithful sampler gives."""

    row: Group
    what: str
    """"tokens" or "acceptances"."""
    n: int
    """Terms of the sums."""
    moments: Moments
    p_value: float
    """Holm-adjusted over all tests of the run."""


def sampler_tests(records: Sequence[GenerationRecord], probes: Sequence[Probe]) -> list[SamplerTest]:
    """Both tests of every lossless row at a temperature above 0; empty where nothing was sampled."""
    parts: dict[tuple[Group, str], list[tuple[int, Moments]]] = defaultdict(list)
    for probe in probes:
        if isinstance(probe, SampledProbe):
            moments = Moments(probe.observed, probe.n_tokens / 2, probe.variance)
            row = probe.method, probe.temperature, probe.gamma
            parts[row, "tokens"].append((probe.n_tokens, moments))
    for record in records:
        if record.status == "ok" and record.temperature > 0 and record.rule == "token" and record.steps:
            steps = record.steps
            row = record.method, record.temperature, record.gamma
            parts[row, "acceptances"].append(
                (sum(steps.n_examined), acceptance_moments(steps.n_accepted, steps.overlap))
            )
    sums = {key: (sum(n for n, _ in found), total(m for _, m in found)) for key, found in parts.items()}
    adjusted = holm({key: moments.p_value for key, (n, moments) in sums.items() if n})
    return [SamplerTest(*key, *sums[key], p_value) for key, p_value in adjusted.items()]
