"""A head drafts, after any history of a request, what it would draft of the whole text's true states."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from specalign.decoding import (
    DraftCosts,
    EagleDrafter,
    HeadStepper,
    Shapes,
    Stepper,
    generate,
    make_head_stepper,
    make_stepper,
    stream,
)
from specalign.decoding.drafters import TokenByToken
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session
from specalign.errors import UserError
from specalign.models.eagle import EagleHead
from specalign.models.heads import head_of
from specalign.models.packing import can_pack
from specalign.models.states import states_entering
from tests.decoding.kinds import tiny_head

Build = Callable[..., PreTrainedModel]
Naive = Callable[..., list[int]]
PROMPTS = [[5, 9, 31, 7, 7, 12, 9], [3, 8, 20], [17], [5, 9, 31]]
"""Ragged, one of a single token, one that begins another."""
GREEDY = Sampling(0.0)
HISTORIES: dict[str, list[tuple[int | None, ...]]] = {
    "none": [],
    "all_rejected": [(0, 0, 0, 0)],
    "ragged": [(3, 0, 1, 2), (0, 2, 3, 1)],
    "one_row_rests": [(2, 1, 0, 3), (3, None, 1, 1), (1, 1, 1, None)],
}
"""Of each step the accepted tokens of each row, of a draft of three; None: the row is finished."""


@torch.inference_mode()
def by_hand(target: PreTrainedModel, head: EagleHead, text: list[int], drafted: list[int]) -> Tensor:
    """Logits [1 + n, V'] after ``text`` and each of n drafted tokens, without a cache.

    Entry t reads token t + 1 and the states at t; where those are drafted, the head's own output one entry earlier.
    """
    layers = head.config.reads
    with states_entering(target, layers) as caught:
        target(input_ids=torch.tensor([text]), use_cache=False)
    true = torch.cat([caught[layer] for layer in layers], -1)[:, : len(text) - 1]
    hidden, ids = head.project(true), text[1:]
    last = []
    for token in [*drafted, None]:
        positions = torch.arange(len(ids)).unsqueeze(0)
        output = head(torch.tensor([ids]), hidden, position_ids=positions, attention_mask=None)[:, -1:]
        last.append(output[0, 0])
        if token is not None:
            hidden, ids = torch.cat([hidden, output], 1), [*ids, token]
    return head_of(head)(head.head_input(torch.stack(last)))


class Request:
    """A target's session and a head's drafting, decoded by hand: what is accepted is given."""

    def __init__(self, target: Stepper, drafter: EagleDrafter, *, n_new: int = 30) -> None:
        self.session = Session.start(target, PROMPTS, n_new, reads=drafter.reads)
        drafting = drafter.start(PROMPTS, n_new, GREEDY, self.session)
        assert isinstance(drafting, TokenByToken)
        self.drafting, self.texts = drafting, [list(prompt) for prompt in PROMPTS]

    def step(self, accepted: Sequence[int | None], *, asked: bool = True) -> None:
        """Verify a draft of three tokens, ``asked`` of the head or of something else."""
        limits = [0 if n is None else 3 for n in accepted]
        if asked:
            self.drafting.draft(self.texts, limits, None)
        else:
            self.drafting.rows.within_context(self.texts, limits)
        fresh = [
            [(7 * row + 5 * len(text) + j) % 37 + 3 for j in range(4)] for row, text in enumerate(self.texts)
        ]
        fed = [[text[-1], *new[:3]] for text, new in zip(self.texts, fresh, strict=True)]
        self.session.extend(torch.tensor(fed))
        for row, n in enumerate(accepted):
            self.texts[row] += [] if n is None else fresh[row][: n + 1]
        self.session.rollback([len(text) - 1 for text in self.texts])

    def keep(self, rows: list[int]) -> None:
        self.session.keep(rows)
        self.drafting.keep(rows)
        self.texts = [self.texts[row] for row in rows]

    def logits(self) -> list[tuple[Tensor, list[int]]]:
        """Of each row those of a draft of three tokens [3, V'], and its first two tokens."""
        rows = self.drafting.rows
        rows.within_context(self.texts, [3] * len(self.texts))
        steps, drafted = [rows.begin(self.texts)], []
        for _ in range(2):
            drafted.append(rows.ids.likeliest(steps[-1]))
            steps.append(rows.follow(drafted[-1].unsqueeze(1)))
        logits, ids = torch.stack(steps, 1), torch.stack(drafted, 1).tolist()
        return list(zip(logits, ids, strict=True))


def require_as_by_hand(
    request: Request, target: PreTrainedModel, head: EagleHead, tolerance: float = 1e-5
) -> None:
    for text, (logits, drafted) in zip(request.texts, request.logits(), strict=True):
        if len(text) > 1:  # before that it cannot draft
            torch.testing.assert_close(
                logits, by_hand(target, head, text, drafted), rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2", "gemma3"])
def test_a_drafts_logits_are_those_of_the_whole_text(build: Build, family: str, history: str) -> None:
    target = build(family)
    head = tiny_head(target)
    with torch.inference_mode():
        request = Request(make_stepper(target), EagleDrafter(head))
        for accepted in HISTORIES[history]:
            request.step(accepted)
        require_as_by_hand(request, target, head)
        require_as_by_hand(request, target, head)  # drafting twice is drafting once
        request.keep([3, 0])
        require_as_by_hand(request, target, head)
        request.step((1, 3))
        require_as_by_hand(request, target, head)


@pytest.mark.parametrize("n_missed", [1, 2, 13])
def test_what_another_drafter_drafted_is_caught_up_with(build: Build, n_missed: int) -> None:
    """In several calls where it is more than one may feed; rows leave in between."""
    target = build("llama", max_positions=128)
    head = tiny_head(target)
    with torch.inference_mode():
        request = Request(make_stepper(target), EagleDrafter(head), n_new=60)
        for number in range(n_missed):
            request.step((3, 0, number % 2, 1), asked=False)
        request.keep([0, 1, 2])
        require_as_by_hand(request, target, head)


def test_states_that_are_one_position_off_change_the_logits(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the comparison above has the power to see it."""
    target = build("llama")
    head = tiny_head(target)
    saw = Session._saw

    def shifted(session: Session, states: dict[int, Tensor], lengths: Sequence[int]) -> None:
        saw(session, {place: each.roll(1, 1) for place, each in states.items()}, lengths)

    with torch.inference_mode():
        monkeypatch.setattr(Session, "_saw", shifted)
        request = Request(make_stepper(target), EagleDrafter(head))
        request.step((3, 3, 3, 3))
        with pytest.raises(AssertionError, match="not close"):
            require_as_by_hand(request, target, head)


def test_a_compiled_head_is_the_eager_one(build: Build, naive_greedy: Naive) -> None:
    """Both compiled: logits after a ragged history, greedy output, and nothing compiled while decoding."""
    model = build("llama")
    head = tiny_head(model)
    target = make_stepper(
        copy.deepcopy(model), "compiled", shapes=Shapes((1, 4), 64, 4), reads=head.config.reads
    )
    done: list[int] = []
    stepper = make_head_stepper(head, "compiled", shapes=Shapes((1, 4), 64, 4), progress=done.append)
    assert done == [1, 1, 1]
    drafter, n_graphs = EagleDrafter(head, stepper), counters["stats"]["unique_graphs"]
    with torch.inference_mode():
        request = Request(target, drafter, n_new=40)
        for accepted in HISTORIES["ragged"]:
            request.step(accepted)
        for _ in range(3):  # more than the largest size to catch up with
            request.step((3, 1, 2, 0), asked=False)
        require_as_by_hand(request, model, head)
    expected = [naive_greedy(model, prompt, 12) for prompt in PROMPTS]
    for gamma in (1, 3):
        batch = generate(target, drafter, PROMPTS, gamma=gamma, max_new_tokens=12)
        assert batch.token_ids == expected
    assert counters["stats"]["unique_graphs"] == n_graphs
    with pytest.raises(ValueError, match="compiled for batches of 4, not 5"):
        generate(model, drafter, [*PROMPTS, [4]], gamma=3, max_new_tokens=4)


@pytest.mark.skipif(not can_pack(torch.zeros(1, 1)), reason="this CPU has no packed kernel")
def test_a_packed_head_is_the_eager_one(build: Build) -> None:
    target = copy.deepcopy(build("llama")).float()
    head = tiny_head(target)
    plain = copy.deepcopy(head)
    stepper = make_head_stepper(head, "packed")
    assert stepper.head.packed is not None
    with torch.inference_mode():
        request = Request(make_stepper(target), EagleDrafter(head, stepper))
        for accepted in HISTORIES["ragged"]:
            request.step(accepted)
        require_as_by_hand(request, target, plain, 1e-3)


def test_a_streamed_request_is_the_whole_one(build: Build) -> None:
    target = build("qwen2")
    drafter = EagleDrafter(tiny_head(target), adaptive=DraftCosts(0.05))
    whole = generate(target, drafter, PROMPTS, gamma=3, max_new_tokens=14).token_ids
    rows: list[list[int]] = [[] for _ in PROMPTS]
    for fresh in stream(target, drafter, PROMPTS, gamma=3, max_new_tokens=14):
        for row, ids in zip(rows, fresh, strict=True):
            row += ids
    assert rows == whole


def test_a_head_of_shorter_context_stops_drafting(build: Build, naive_greedy: Naive) -> None:
    target = build("llama")
    drafter = EagleDrafter(tiny_head(build("llama", max_positions=16)))
    for prompt in (PROMPTS[0], [3 + i % 30 for i in range(20)]):
        result = generate(target, drafter, prompt, gamma=3, max_new_tokens=20, eos=())
        assert result.token_ids == [naive_greedy(target, prompt, 20, eos=())]
        assert result.steps[0][-1].n_drafted == 0
    assert generate(target, drafter, PROMPTS[0], gamma=3, max_new_tokens=6).steps[0][0].n_drafted == 3


def test_a_single_token_is_drafted_from_once_the_target_has_read_it(build: Build) -> None:
    target = build("llama")
    (steps,) = generate(target, EagleDrafter(tiny_head(target)), [17], gamma=2, max_new_tokens=6, eos=()).steps
    assert [step.n_drafted for step in steps[:2]] == [0, 2]


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("t5", {}, "heads read the states of decoder-only models"),
        ("llama", {"vocab": 20}, "it has 40 ids, the target has 20"),
    ],
)
def test_a_target_that_it_does_not_fit_is_refused(
    build: Build, family: str, options: dict[str, Any], reason: str
) -> None:
    drafter = EagleDrafter(tiny_head(build("llama")))
    with pytest.raises(UserError, match=f"EagleHead does not fit the target, .*: {reason}"):
        generate(build(family, **options), drafter, PROMPTS[0], max_new_tokens=4)


def test_layers_and_widths_are_held_against_the_target(build: Build) -> None:
    head = tiny_head(build("llama"))
    head.config.eagle_aux_hidden_state_layer_ids = [0, 1, 4]
    with pytest.raises(UserError, match=r"reads layers \[0, 1, 4\], the target has 3"):
        generate(build("llama"), EagleDrafter(head), PROMPTS[0], max_new_tokens=4)
    head.config.target_hidden_size = 64
    with pytest.raises(UserError, match="states of 64 numbers, the target's have 32"):
        generate(build("llama"), EagleDrafter(head), PROMPTS[0], max_new_tokens=4)


def test_a_compiled_head_needs_its_shapes(build: Build) -> None:
    with pytest.raises(ValueError, match="static shapes"):
        make_head_stepper(tiny_head(build("llama")), "compiled")
    assert isinstance(make_head_stepper(tiny_head(build("llama"))), HeadStepper)
