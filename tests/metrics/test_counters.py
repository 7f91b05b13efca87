"""A serving engine's counters are our figures where every draft has the full length."""

from __future__ import annotations

import pytest

from specalign.metrics import acceptance
from specalign.metrics.counters import counted_figures, n_examined, survival, total
from specalign.results import DraftCounts, GenerationRecord, StepTrace

GAMMA = 3
ACCEPTED = [2, 0, 3, 1, 0]


def trace() -> StepTrace:
    """Steps that each draft three tokens."""
    zeros = [0.0] * len(ACCEPTED)
    return StepTrace(
        n_drafted=[GAMMA] * len(ACCEPTED),
        n_examined=[min(GAMMA, n + 1) for n in ACCEPTED],
        n_accepted=ACCEPTED,
        n_emitted=[n + 1 for n in ACCEPTED],
        overlap=[[] for _ in ACCEPTED],
        draft_s=zeros,
        verify_s=zeros,
        rest_s=zeros,
    )


def counts() -> DraftCounts:
    """What vLLM counts of the same steps."""
    by_position = [sum(n >= place for n in ACCEPTED) for place in (1, 2, 3)]
    return DraftCounts(len(ACCEPTED), GAMMA * len(ACCEPTED), sum(ACCEPTED), by_position)


def record(prompt: str, counted: DraftCounts) -> GenerationRecord:
    return GenerationRecord(
        method="gkd", prompt_id=prompt, category="", repeat=0, order=0, temperature=0.0, top_k=0, top_p=1.0,
        gamma=GAMMA, rule="greedy", lossless=True, seed=0, n_prompt_tokens=1, status="ok", counts=counted,
    )  # fmt: skip


def test_counters_and_traces_of_the_same_steps_agree() -> None:
    figures = counted_figures([record("a", counts()), record("b", counts())])
    steps = [trace()]
    values = {name: figures[name].value for name in ("alpha_counted", "accepted_per_drafted", "tau")}  # type: ignore[attr-defined]
    assert values["alpha_counted"] == pytest.approx(acceptance.n_accepted(steps) / acceptance.n_examined(steps))
    assert values["accepted_per_drafted"] == pytest.approx(
        acceptance.n_accepted(steps) / acceptance.n_drafted(steps)
    )
    assert values["tau"] == pytest.approx(acceptance.n_emitted(steps) / acceptance.n_steps(steps))
    assert figures["survival_by_position"] == pytest.approx(acceptance.survival_by_position(steps, GAMMA))
    assert figures["acceptance_by_position"] == pytest.approx(acceptance.acceptance_by_position(steps, GAMMA))


def test_shorter_drafts_hide_how_many_were_examined() -> None:
    short = DraftCounts(5, 14, 6, [3, 2, 1])
    assert n_examined(short) is None
    assert counted_figures([record("a", short)])["alpha_counted"] is None
    assert n_examined(counts()) == acceptance.n_examined([trace()])


def test_nothing_counted_is_nothing_known() -> None:
    assert counted_figures([]) == {}
    assert survival(DraftCounts(0, 0, 0, [0, 0])) == [None, None]
    assert total([counts(), counts()]) == DraftCounts(10, 30, 12, [6, 4, 2])
