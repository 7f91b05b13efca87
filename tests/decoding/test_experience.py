"""What a hybrid knows of earlier requests: what it adds up to, what it saves, and that it can be unlearnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from specalign.benchmarks.learned import Learned, drafted_by
from specalign.decoding import DraftCosts, EagleDrafter, Hybrid, ModelDrafter, Step, SuffixLookup, generate
from specalign.decoding.draft_length import FORGETTING, MOST_KNOWN, DraftLength, Origin, Tally
from specalign.decoding.experience import TRYING, Experience, Trials
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session
from specalign.decoding.stepper import make_stepper
from specalign.records import GenerationRecord, StepTrace
from tests.decoding.kinds import tiny_head

Build = Callable[..., PreTrainedModel]
COPY = DraftCosts(0.0, (1.0, 1.02))
DEAR = DraftCosts(0.3, (1.0, 1.02))
PROMPTS = [[5, 9, 31, 7] * 3, [11, 4, 6, 8, 9, 4, 6, 30]]


def step(part: int, classes: Sequence[int], n_accepted: int, price: float = 0.0) -> Step:
    """Of a draft that was looked at to its end."""
    n = len(classes)
    return Step(n, n, n_accepted, n_accepted + 1, (), 0.0, 0.0, 0.0, origin=Origin(part, tuple(classes), price))


def test_it_is_the_counts_of_the_steps_and_earlier_requests_fade() -> None:
    steps = [step(1, (4, 0), 1), step(0, (2,), 1), step(-1, (), 0), step(1, (0,), 0, price=0.4)]
    first = Experience.none(2).after(steps, [COPY, DEAR])
    assert first.parts[0][0] == first.parts[0][3] == Tally(1, 1)
    assert first.parts[1] == (Tally(1, 3), Tally(0, 2), Tally(), Tally(), Tally(), Tally(1, 1))
    assert first.tokens == first.emitted == 6
    assert first.paid == pytest.approx(DEAR.cost(2) + COPY.cost(1) + 1 + DEAR.cost(1))
    assert first.spent == 0.4
    second = first.after([step(1, (4,), 1)], [COPY, DEAR])
    assert second.parts[1][5] == Tally(FORGETTING + 1, FORGETTING + 1)
    assert second.parts[0][0] == Tally(FORGETTING, FORGETTING)
    assert (second.tokens, second.emitted) == (pytest.approx(FORGETTING * 6 + 2), 8)
    assert second.after([Step(1, 1, 1, 2, (), 0.0, 0.0, 0.0)], [COPY, DEAR]) is second, "of no hybrid"


def test_a_request_unlearns_what_others_showed() -> None:
    """However much was seen before, it is worth MOST_KNOWN tokens."""
    length = DraftLength(DraftCosts(0.1, (1.0, 1.02)))
    length.know([Tally(0, 10_000)] * 6)
    assert length.promise((), 3) == (0.0, 0)
    for _ in range(int(MOST_KNOWN)):
        length.begin(3, None)
        length.drafted(0.9)
        length.settle(1)
    assert length.promise((), 3)[0] > 0


def test_the_rate_begins_where_earlier_requests_ended() -> None:
    length = DraftLength(COPY)
    length.rate.know(3000.0, 1000.0)
    assert length.rate.value == pytest.approx((1 + 3 * MOST_KNOWN) / (1 + MOST_KNOWN))
    few = DraftLength(COPY)
    few.rate.know(4.0, 2.0)
    assert few.rate.value == pytest.approx(5 / 3)


def test_trials_cost_no_more_than_their_share() -> None:
    trials = Trials()
    assert not trials.affords(0.2), "nothing was earned yet"
    for _ in range(1000):
        trials.settle(0.2 if trials.affords(0.2) else 0.0, 0, 1)
    assert 0.9 * TRYING * 1000 < trials.spent <= TRYING * 1000
    trials.settle(0.2, 1, 2)
    assert trials.spent < TRYING * 1000 - 0.7, "a trial that is right pays for others"


@pytest.fixture
def useless(build: Build) -> Hybrid:
    """Copies, and a model that is hardly ever right."""
    return Hybrid((SuffixLookup(COPY), ModelDrafter(build("llama", 1), adaptive=DEAR)))


def asked(target: PreTrainedModel, hybrid: Hybrid, prompt: list[int]) -> tuple[list[Step], list[int]]:
    """A request's steps, and its tokens."""
    result = generate(target, hybrid, prompt, gamma=3, max_new_tokens=24, eos=())
    return result.steps[0], result.token_ids[0]


def drafts(steps: Sequence[Step]) -> int:
    """Of the second part."""
    return sum(each.origin is not None and each.origin.part == 1 for each in steps)


def test_a_part_that_never_was_right_is_hardly_asked_again_and_reads_no_prompt(
    build: Build, useless: Hybrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, read = build("llama"), []
    start = Session.start

    def watched(stepper, *args, **kwargs):  # type: ignore[no-untyped-def]
        read.append(stepper.model is not target)
        return start(stepper, *args, **kwargs)

    monkeypatch.setattr(Session, "start", watched)
    for prompt in PROMPTS:
        plain = generate(target, None, prompt, max_new_tokens=24, eos=()).token_ids[0]
        read.clear()
        anew, tokens = asked(target, useless, prompt)
        assert tokens == plain
        assert drafts(anew)
        assert any(read)
    knows, found = useless, []
    for prompt in PROMPTS * 4:
        read.clear()
        steps, _ = asked(target, knows, prompt)
        knows = knows.learned([steps])
        found.append((drafts(steps), any(read)))
    assert all(reads == (n > 0) for n, reads in found), "what does not draft reads nothing"
    assert sum(n for n, _ in found[2:]) < sum(drafts(asked(target, useless, each)[0]) for each in PROMPTS * 3)
    assert (0, False) in found


def test_what_failed_is_tried_again_and_then_used(build: Build) -> None:
    """The second part is the target itself, but was never right in an earlier request."""
    target = build("llama")
    near = ModelDrafter(target, adaptive=DraftCosts(0.1, (1.0, 1.02)))
    bad = [step(1, (4,), 0) for _ in range(30)]
    hybrid = Hybrid((SuffixLookup(COPY), near)).learned([bad])
    assert hybrid.known
    assert drafts(asked(target, replace(hybrid, known=replace(hybrid.known, emitted=0.0)), PROMPTS[1])[0]) == 0
    for _ in range(6):
        steps, _ = asked(target, hybrid, PROMPTS[1])
        hybrid = hybrid.learned([steps])
    chosen = [each.origin for each in steps if each.origin and each.origin.part == 1]
    assert any(origin.price == 0 for origin in chosen), "no longer on trial"


def test_requests_know_what_they_are_told_and_no_more(build: Build, useless: Hybrid) -> None:
    """The same knowledge, the same decisions; a drafter that is not told anything begins anew."""
    target = build("llama")
    first, _ = asked(target, useless, PROMPTS[0])
    knows = useless.learned([first])
    origins = [
        [each.origin for each in asked(target, hybrid, PROMPTS[1])[0]]
        for hybrid in (useless, knows, useless.learned([first]), useless)
    ]
    assert origins[0] == origins[3] != origins[1] == origins[2]


def test_records_say_all_that_is_learnt_from(build: Build, useless: Hybrid) -> None:
    """A resumed run reads its knowledge off the records: of the same row alone, in their order."""
    target, live, records = build("llama"), useless, []
    for prompt in PROMPTS:
        steps, tokens = asked(target, live, prompt)
        live = live.learned([steps])
        trace = StepTrace(
            [one.n_drafted for one in steps],
            [one.n_examined for one in steps],
            [one.n_accepted for one in steps],
            [one.n_emitted for one in steps],
            [],
            [],
            [],
            [],
        )
        written = GenerationRecord("fast", str(prompt), "", 0, 0, 0.0, 0, 1.0, 3, "greedy", True, 0, 8, "ok")
        records.append(replace(written, token_ids=tokens, steps=trace, drafted_by=drafted_by(steps)))
    others = [replace(records[0], repeat=1), replace(records[0], status="failed")]
    learned = Learned({"fast": useless, "target": None}, [records[0], *others, records[1]])
    assert learned.rows["fast", 0.0, 3, 0] == live
    assert learned.rows["fast", 0.0, 3, 1] == useless.learned([asked(target, useless, PROMPTS[0])[0]])
    assert drafted_by(generate(target, None, PROMPTS[0], max_new_tokens=4).steps[0]) is None


@pytest.mark.parametrize("kind", ["model", "head"])
def test_a_part_that_joins_late_drafts_as_one_that_was_ready(build: Build, kind: str) -> None:
    """Rows of a batch leave meanwhile; the text is read when it is needed."""
    target = build("llama")
    prompts = [*PROMPTS, [3, 8, 8]]
    near = EagleDrafter(tiny_head(target)) if kind == "head" else ModelDrafter(build("llama", noise=0.05))
    ends, found = [[7, 9, 4], [12, 13, 6, 8], [21]], []
    for ready in (True, False):
        session = Session.start(make_stepper(target), prompts, 20, reads=near.reads)
        drafting = near.start(prompts, 20, Sampling(0.0), session)
        if ready:
            drafting.ready()
        texts = [list(prompt) for prompt in prompts]
        for n in range(3):
            drafting.rows.within_context(texts, [1] * len(texts))  # type: ignore[attr-defined]
            session.extend(torch.tensor([[text[-1]] for text in texts]))
            texts = [[*text, ends[row][n % len(ends[row])]] for row, text in enumerate(texts)]
            if n == 1:
                session.keep([0, 2])
                drafting.keep([0, 2])
                texts, ends = [texts[0], texts[2]], [ends[0], ends[-1]]
        ends = [[7, 9, 4], [12, 13, 6, 8], [21]]
        found.append(drafting.draft(texts, [3, 3], None).ids.tolist())
    assert found[0] == found[1]
