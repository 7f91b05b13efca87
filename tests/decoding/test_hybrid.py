"""Two drafters as one: the better one drafts, each step, and a part that is not chosen costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
from transformers import PreTrainedModel

from specalign.decoding import DraftCosts, Drafter, Hybrid, ModelDrafter, SuffixLookup, generate
from specalign.decoding.draft_length import DraftLength, DraftLengths
from specalign.decoding.drafters import Draft, Drafting, Kind, MakeStepper
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session
from specalign.decoding.stepper import Stepper

Build = Callable[..., PreTrainedModel]
FREE = DraftCosts(0.0, (1.0, 1.02))
REPEATED = [5, 9, 31, 7] * 6
N_NEW = 120


@dataclass
class Oracle:
    """Drafts a known continuation, right in the steps where ``knows`` says so; a copy costs ``costs``."""

    prompt: list[int]
    output: list[int]
    knows: Callable[[int], bool]
    adaptive: DraftCosts | None
    calls: list[int] = field(default_factory=list)
    """Position of each call that drafted."""
    kind: ClassVar[Kind] = "model"
    reads: ClassVar[tuple[int, ...]] = ()
    alone: Stepper | None = None

    def with_costs(self, costs: DraftCosts | None) -> Oracle:
        return replace(self, adaptive=costs)

    def made_ready(self, make: MakeStepper) -> Oracle:
        return self

    def start(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, target: Session
    ) -> Drafting:
        return _Asked(self, DraftLengths(self.adaptive or FREE, len(prompts)))


@dataclass
class _Asked:
    oracle: Oracle
    lengths: DraftLengths | None

    def ready(self) -> None:
        """It reads nothing."""

    def promise(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> list[float]:
        assert self.lengths
        return [row.promise((), limit)[0] for row, limit in zip(self.lengths.rows, limits, strict=True)]

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        assert self.lengths
        place = len(sequences[0]) - len(self.oracle.prompt)
        self.oracle.calls.append(place)
        self.lengths.settle(sequences)
        self.lengths.begin(limits)
        n = min(limits[0], 3)
        right = self.oracle.output[place : place + n]
        ids = right if self.oracle.knows(place) else [(token + 1) % 40 for token in right]
        for _ in ids:
            self.lengths.drafted([0.5])
        return Draft(torch.tensor([ids], dtype=torch.long).reshape(1, -1), [len(ids)], None)

    def keep(self, rows: Sequence[int]) -> None:
        assert self.lengths
        self.lengths.keep(rows)


@pytest.fixture
def target(build: Build, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    model = build("llama")
    monkeypatch.setattr(model.config, "max_position_embeddings", 256)
    return model


@pytest.fixture
def plain(target: PreTrainedModel) -> list[int]:
    """The target's own output."""
    return generate(target, None, REPEATED, max_new_tokens=N_NEW, eos=()).token_ids[0]


def run(target: PreTrainedModel, *parts: Drafter) -> tuple[list[int], list[int]]:
    """The output, and how many tokens each step emitted."""
    result = generate(target, Hybrid(parts), REPEATED, gamma=3, max_new_tokens=N_NEW, eos=())
    return result.token_ids[0], [step.n_emitted for step in result.steps[0]]


def always(place: int) -> bool:
    return True


def never(place: int) -> bool:
    return False


def early(place: int) -> bool:
    return place < N_NEW // 4


def late(place: int) -> bool:
    return not early(place)


@pytest.mark.parametrize("first_knows", [True, False])
def test_the_part_that_is_right_drafts_nearly_always(
    target: PreTrainedModel, plain: list[int], first_knows: bool
) -> None:
    first = Oracle(REPEATED, plain, always if first_knows else never, FREE)
    second = Oracle(REPEATED, plain, never if first_knows else always, FREE)
    output, _ = run(target, first, second)
    assert output == plain
    right, wrong = (first, second) if first_knows else (second, first)
    assert len(right.calls) > 3 * len(wrong.calls)


def test_it_changes_over_where_the_better_part_changes(target: PreTrainedModel, plain: list[int]) -> None:
    """Each part is right in its time: together they need fewer steps than either alone."""
    steps = {}
    for kinds in ((early,), (late,), (early, late)):
        output, emitted = run(target, *(Oracle(REPEATED, plain, kind, FREE) for kind in kinds))
        assert output == plain
        steps[kinds] = len(emitted)
    assert steps[early, late] < 0.9 * min(steps[early,], steps[late,])


def test_nothing_is_drafted_where_nothing_pays(target: PreTrainedModel) -> None:
    dear = DraftCosts(2.0)
    near = ModelDrafter(target, adaptive=dear)
    result = generate(target, Hybrid((near, near)), REPEATED, gamma=3, max_new_tokens=20, eos=())
    assert sum(step.n_drafted for step in result.steps[0]) == 0


def test_a_part_that_no_row_chose_makes_no_call(
    target: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    extend = Session.extend

    def counted(self: Session, ids: torch.Tensor) -> torch.Tensor:
        calls.append(self.model)
        return extend(self, ids)

    monkeypatch.setattr(Session, "extend", counted)
    other = ModelDrafter(target, adaptive=DraftCosts(5.0))
    result = generate(target, Hybrid((SuffixLookup(FREE), other)), REPEATED, gamma=3, max_new_tokens=20, eos=())
    assert len(calls) == len(result.steps[0])


def test_a_part_without_costs_is_refused(target: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="`adaptive`"):
        generate(target, Hybrid((SuffixLookup(), ModelDrafter(target))), REPEATED, max_new_tokens=4)


def test_a_part_whose_context_is_full_drafts_nothing(build: Build, target: PreTrainedModel) -> None:
    short = build("llama", 1)
    parts = (SuffixLookup(FREE), ModelDrafter(short, adaptive=FREE))
    plain = generate(target, None, REPEATED, max_new_tokens=12, eos=()).token_ids
    before = short.config.max_position_embeddings
    short.config.max_position_embeddings = len(REPEATED)
    try:
        assert generate(target, Hybrid(parts), REPEATED, max_new_tokens=12, eos=()).token_ids == plain
    finally:
        short.config.max_position_embeddings = before


def test_promises_are_gains_beyond_cost() -> None:
    """One token at acceptance 1/2 (the prior) gains 1/2; it costs r c = 0.2 and no verification."""
    gain, n = DraftLength(DraftCosts(0.2)).promise((), 1)
    assert (gain, n) == (pytest.approx(0.3), 1)
    assert DraftLength(DraftCosts(0.6)).promise((), 4) == (0.0, 0)


def test_a_part_that_was_not_chosen_forgets_its_failures() -> None:
    lengths = DraftLengths(DraftCosts(0.3), 1)
    text = [0] * 5
    lengths.settle([text])
    for _ in range(10):
        lengths.begin([1])
        lengths.drafted([0.5])
        text.append(0)  # nothing accepted
        lengths.settle([text])
    bad = lengths.rows[0].promise((), 1)[0]
    for _ in range(100):
        text.append(0)
        lengths.settle([text], [False])
    soon = lengths.rows[0].promise((), 1)[0]
    for _ in range(100):
        text.append(0)
        lengths.settle([text], [False])
    assert bad == soon == 0 < lengths.rows[0].promise((), 1)[0]
