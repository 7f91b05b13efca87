"""The figures of other projects, computed from our steps, so that our table can stand beside anybody's.

Formulas as their documentation and code were summarised in 2026; docs/metrics.md lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from specalign.metrics import acceptance
from specalign.records import StepTrace


@dataclass(frozen=True)
class Foreign:
    """Acceptance as others report it. None where no step drafted anything."""

    vllm_draft_acceptance_rate: float | None
    """Accepted over drafted; the denominator counts tokens after a rejection too."""
    vllm_mean_acceptance_length: float | None
    """1 + accepted tokens per draft; steps without a draft do not count."""
    vllm_acceptance_by_position: list[float]
    """Share of all drafts that got i tokens accepted: our survival where every draft has the full length."""
    sglang_accept_length: float | None
    """Emitted tokens per target call."""
    spec_bench_mean_accepted_tokens: float | None
    """Mean over target calls of accepted + 1, also where the output ends before the extra token."""
    eagle_average_acceptance_length: float | None
    """New tokens over target calls."""
    deepspec_accepted_length: float | None
    """Mean over drafts of accepted + 1."""


def foreign_figures(traces: Sequence[StepTrace], gamma: int) -> Foreign:
    """All of :class:`Foreign` for the steps of some generations, pooled."""
    accepted, n_steps = acceptance.n_accepted(traces), acceptance.n_steps(traces)
    n_drafts = sum(drafted > 0 for trace in traces for drafted in trace.n_drafted)
    reached = [
        sum(count >= place for trace in traces for count in trace.n_accepted) for place in range(1, gamma + 1)
    ]
    per_step = acceptance.n_emitted(traces) / n_steps if n_steps else None
    per_draft = 1 + accepted / n_drafts if n_drafts else None
    return Foreign(
        vllm_draft_acceptance_rate=accepted / acceptance.n_drafted(traces) if n_drafts else None,
        vllm_mean_acceptance_length=per_draft,
        vllm_acceptance_by_position=[count / n_drafts for count in reached] if n_drafts else [],
        sglang_accept_length=per_step,
        spec_bench_mean_accepted_tokens=1 + accepted / n_steps if n_steps else None,
        eagle_average_acceptance_length=per_step,
        deepspec_accepted_length=per_draft,
    )


PROJECTS = ("vllm", "sglang", "spec_bench", "eagle", "deepspec")
"""Whose figures there are; a field of :class:`Foreign` starts with the name."""


def figures_of(project: str, foreign: Foreign) -> dict[str, float | list[float] | None]:
    """Name -> value of one project's figures."""
    names = [item.name for item in fields(Foreign) if item.name.startswith(f"{project}_")]
    return {name.removeprefix(f"{project}_"): getattr(foreign, name) for name in names}


def conditional_from_survival(survival: Sequence[float]) -> list[float | None]:
    """Acceptance at each position given that it was reached: S_i / S_(i-1); None after a survival of 0."""
    before = [1.0, *survival]
    return [now / last if last else None for last, now in zip(before, survival, strict=False)]


def tau_from_acceptance_length(length: float, *, counts_bonus: bool) -> float:
    """Block efficiency from a published acceptance length that does or does not count the target's own token."""
    return length if counts_bonus else length + 1
