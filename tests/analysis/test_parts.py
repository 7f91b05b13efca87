"""Taken apart, a run's generations are still all of them, and what was planted in a part is found there alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from specalign.analysis.parts import INSIDE, OUTSIDE, Part, parts_of
from specalign.analysis.speeds import speeds_of
from specalign.metrics import acceptance
from specalign.records import GenerationRecord, StepTrace
from specalign.reports.content import Table
from specalign.reports.parts import parts

GROUP = ("drafter", 0.0, 3)
END, BEGIN = 90, 91


def trace(accepted: Sequence[int], drafted: int, seconds: Sequence[float]) -> StepTrace:
    n = len(accepted)
    return StepTrace(
        n_drafted=[drafted] * n,
        n_examined=[min(drafted, each + 1) for each in accepted],
        n_accepted=list(accepted),
        n_emitted=[each + 1 for each in accepted],
        overlap=[[0.5] * min(drafted, each + 1) for each in accepted],
        draft_s=[each / 4 for each in seconds],
        verify_s=[each / 2 for each in seconds],
        rest_s=[each / 4 for each in seconds],
    )


def record(
    method: str, prompt: int, turn: int, n_prompt: int, steps: StepTrace, *, ids: Sequence[int] = ()
) -> GenerationRecord:
    n = sum(steps.n_emitted)
    seconds = sum(map(sum, (steps.draft_s, steps.verify_s, steps.rest_s)))
    return GenerationRecord(
        method=method,
        prompt_id=str(prompt),
        category="",
        repeat=0,
        order=0,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        gamma=0 if method == "target" else 3,
        rule="none" if method == "target" else "greedy",
        lossless=True,
        seed=0,
        n_prompt_tokens=n_prompt,
        status="ok",
        token_ids=list(ids) or [1] * n,
        steps=steps,
        decode_s=seconds,
        wall_s=seconds,
        turn=turn,
    )


def conversations(n: int = 6) -> list[GenerationRecord]:
    """Two turns each, the first in a short context, where the drafter is twice as fast, the second in a long one,
    where it is half as fast."""
    found = []
    for prompt in range(n):
        for turn, (n_prompt, accepted, cost) in enumerate([(20 + prompt, 3, 2.0), (300 + prompt, 0, 2.0)]):
            n_steps = 12 // (accepted + 1)
            found.append(record("target", prompt, turn, n_prompt, trace([0] * 12, 0, [1.0] * 12)))
            steps = trace([accepted] * n_steps, 3, [cost] * n_steps)
            found.append(record("drafter", prompt, turn, n_prompt, steps))
    return found


def test_what_was_planted_in_a_turn_is_found_there_alone() -> None:
    found = parts_of(conversations()).turns
    assert list(found) == [0, 1]
    speedups = {turn: part.speeds.speedup(GROUP) for turn, part in found.items()}
    ratios = {turn: estimate.interval().value for turn, estimate in speedups.items() if estimate}
    assert ratios == pytest.approx({0: 2.0, 1: 0.5})
    taus = {turn: tau.value for turn, part in found.items() if (tau := part.tau(GROUP))}
    assert taus == {0: 4.0, 1: 1.0}
    alphas = {turn: alpha.value for turn, part in found.items() if (alpha := part.alpha(GROUP))}
    assert alphas == {0: 1.0, 1: 0.0}


def test_steps_are_told_apart_by_the_tokens_before_them() -> None:
    """A generation from 60 tokens on passes 64: its first four tokens are below, the rest above."""
    records = [
        record("target", 0, 0, 60, trace([0] * 12, 0, [1.0] * 12)),
        record("drafter", 0, 0, 60, trace([3, 1, 1, 3], 3, [1.0, 2.0, 3.0, 4.0])),
        record("target", 1, 0, 600, trace([0] * 12, 0, [1.0] * 12)),
    ]
    found = parts_of(records).contexts
    assert list(found) == [32, 64, 512]
    counts = {least: part.counts[GROUP].get("0") for least, part in found.items()}
    assert counts[32]
    assert (counts[32].n_steps, counts[32].n_emitted, counts[32].seconds) == (1, 4, 1.0)
    assert counts[64]
    assert (counts[64].n_steps, counts[64].n_emitted, counts[64].seconds) == (3, 8, 9.0)
    assert counts[512] is None
    assert found[64].speeds.speedup(GROUP, figure="decode") is not None
    assert not parts_of(records[:2]).contexts, "from 60 to 72 tokens there is nothing to compare"
    later = record("target", 0, 1, 90, trace([0] * 12, 0, [1.0] * 12))
    assert list(parts_of([*records[:2], later]).contexts) == [32, 64], (
        "but a conversation's turns are told apart"
    )


def test_the_parts_are_the_whole() -> None:
    records = conversations()
    found = parts_of(records)
    own = [each.steps for each in records if each.method == "drafter" and each.steps]
    for kind in (found.turns, found.contexts):
        counts = [each for part in kind.values() for each in part.counts[GROUP].values()]
        assert sum(each.n_steps for each in counts) == acceptance.n_steps(own)
        assert sum(each.n_accepted for each in counts) == acceptance.n_accepted(own)
        assert sum(each.n_examined for each in counts) == acceptance.n_examined(own)
    whole = speeds_of(records).generations[GROUP]
    for prompt, (outside, decode_s, n_tokens) in whole.items():
        inside = [part.speeds.generations[GROUP].get(prompt, (0, 0.0, 0)) for part in found.contexts.values()]
        assert decode_s == pytest.approx(sum(each[1] for each in inside))
        assert n_tokens == sum(each[2] for each in inside)
        assert outside == 0


@pytest.mark.parametrize(
    ("ids", "opened", "inside"),
    [
        ([BEGIN, 1, 1, END, 1, 1], False, 4),
        ([1, 1, END, 1, 1, 1], True, 3),
        ([BEGIN, 1, 1, 1, 1, 1], False, 6),
        ([1, 1, 1, 1, 1, 1], True, 6),
        ([1, 1, 1, 1, 1, 1], False, 0),
    ],
)
def test_thinking_ends_with_its_token(ids: list[int], opened: bool, inside: int) -> None:
    both = [
        record("target", 0, 0, 9, trace([0] * 6, 0, [1.0] * 6), ids=[BEGIN, 1, END, 1, 1, 1]),
        record("drafter", 0, 0, 9, trace([0] * 6, 3, [1.0] * 6), ids=ids),
    ]
    found = parts_of(both, {"begin": BEGIN, "end": END, "opened": opened}).thinking
    n = {name: part.counts[GROUP]["0"].n_emitted for name, part in found.items() if "0" in part.counts[GROUP]}
    assert n.get(INSIDE, 0) == inside
    assert n.get(OUTSIDE, 0) == 6 - inside
    assert not parts_of(both).thinking


def test_only_what_there_is_enough_of_is_shown() -> None:
    shown = [section.title for section in parts(parts_of(conversations())) if section]
    assert shown == ["By turn", "By length of the context"]
    assert not any(parts(parts_of(conversations(n=3))))
    assert not any(parts(parts_of([each for each in conversations() if not each.turn])))
    turn, _, _ = parts(parts_of(conversations()))
    assert turn
    (table,) = turn.parts[0].blocks
    assert isinstance(table, Table)
    assert table.header == ["method", "figure", "turn 1 (6)", "turn 2 (6)"]
    assert [line[:2] for line in table.lines] == [
        ["drafter (γ = 3)", figure] for figure in ("speed-up", "tokens per call (τ)", "α counted")
    ]
    assert table.lines[0][2].startswith("2.00x")
    assert table.lines[0][3].startswith("0.50x")


def test_a_part_without_the_plain_target_has_no_prompts() -> None:
    assert Part().n_prompts == 0
