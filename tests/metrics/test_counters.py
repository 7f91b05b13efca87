"""A serving engine's counters are our figures where every draft has the full length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specalign.metrics import acceptance
from specalign.metrics.counters import counted_figures, in_our_terms, n_examined, survival, total
from specalign.records import DraftCounts, GenerationRecord, StepTrace

GAMMA = 3
ACCEPTED = [2, 0, 3, 1, 0]


def trace(steps: Sequence[tuple[int, int, int, int]] = ()) -> StepTrace:
    """Steps of (drafted, examined, accepted, emitted); by default those of ACCEPTED, each drafting three tokens."""
    steps = steps or [(GAMMA, min(GAMMA, n + 1), n, n + 1) for n in ACCEPTED]
    drafted, examined, accepted, emitted = (list(column) for column in zip(*steps, strict=True))
    zeros = [0.0] * len(steps)
    return StepTrace(
        n_drafted=drafted,
        n_examined=examined,
        n_accepted=accepted,
        n_emitted=emitted,
        overlap=[[] for _ in steps],
        draft_s=zeros,
        verify_s=zeros,
        rest_s=zeros,
    )


def counts(accepted: Sequence[int] = ACCEPTED) -> DraftCounts:
    """What vLLM counts of the same steps."""
    by_position = [sum(n >= place for n in accepted) for place in (1, 2, 3)]
    return DraftCounts(len(accepted), GAMMA * len(accepted), sum(accepted), by_position)


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


AGREEING = st.lists(st.integers(0, GAMMA), min_size=1, max_size=12)
"""Of each step, the drafted tokens that the target would have chosen too."""


@given(AGREEING, st.integers(1, 5), st.sampled_from(["length", "eos"]))
def test_what_was_accepted_beyond_the_end_is_not_ours(
    agreeing: list[int], last: int, reason: Literal["length", "eos"]
) -> None:
    """The same tokens by both engines, with the end inside of the last step or at its end."""
    *before, final = agreeing
    n_last = min(last, final + 1)
    cut = n_last <= final or reason == "length"
    steps = [(GAMMA, min(GAMMA, n + 1), n, n + 1) for n in before]
    if reason == "length":  # at most one token less than are still asked for is drafted
        steps.append((min(GAMMA, n_last - 1), n_last - 1, n_last - 1, n_last))
    elif cut:  # the accepted token ends the output
        steps.append((GAMMA, n_last, n_last, n_last))
    else:
        steps.append((GAMMA, min(GAMMA, final + 1), final, n_last))
    n_tokens = 1 + sum(emitted for *_, emitted in steps)
    own = replace(record("a", counts(agreeing)), token_ids=[0] * n_tokens, finish_reason=reason, n_last=n_last)

    ours, n_cut = in_our_terms(own, counts(agreeing))
    traced = [trace(steps)]
    assert ours.n_accepted == sum(ours.accepted_by_position) == acceptance.n_accepted(traced)
    assert n_examined(ours, n_cut) == acceptance.n_examined(traced)
    assert survival(ours) == [
        sum(accepted >= place for *_, accepted, _ in steps) / len(steps) for place in (1, 2, 3)
    ]
    assert in_our_terms(replace(own, n_last=None), counts(agreeing)) == (counts(agreeing), 0)
