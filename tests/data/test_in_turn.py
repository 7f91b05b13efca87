"""A conversation is asked turn by turn: with the data's own answers in it, every prompt is that of the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from specalign.benchmarks.prompts import longest, turn_ids, within
from specalign.data import Conversing, Example, Prompt, encode_prompts, load_examples
from specalign.data.conversations import ANSWER, with_answers
from specalign.data.dialogue import Dialogue
from specalign.data.preflight import describe_prompts
from specalign.data.turns import turns_of
from specalign.preflight import Caution
from tests.data.chat_templates import QWEN25, SPECIAL, tokenizer_of
from tests.data.test_conversations import ASKED, CALL, MORE, TOOL, conversations


def in_turn(messages: Sequence[Any], tokenizer: Any, *, limit: int = 10_000, turns: Any = "in_turn") -> Prompt:
    rows = [Example("1", "d", messages=tuple(messages), tools=(TOOL,) if messages[1:2] == CALLED else ())]
    (prompt,) = encode_prompts(
        rows, tokenizer, prompt="{document}", max_prompt_tokens=limit, conversing=Conversing(turns)
    )
    return prompt


CALLED = [{**ANSWER, "content": "", "tool_calls": [CALL]}]


@pytest.mark.parametrize("family", SPECIAL)
@given(messages=conversations())
@settings(max_examples=40, deadline=None)
def test_with_the_datas_answers_every_prompt_is_the_datas(family: str, messages: list[dict[str, str]]) -> None:
    tokenizer = tokenizer_of(SPECIAL[family][0])
    writing = turns_of(tokenizer, "auto")
    prompt = in_turn(messages, tokenizer)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    places += [len(messages)] if messages[-1]["role"] == "user" else []
    assert 1 + len(prompt.later) == len(places)
    for turn, place in enumerate(places):
        asked = Dialogue(tuple(messages[:place])).ids(writing)
        assert list(turn_ids(prompt, answers[:turn], writing)) == asked
    references = [prompt.reference, *(later.reference for later in prompt.later)]
    assert references == [*answers, *[""] * (len(places) - len(answers))]


def test_an_answer_that_calls_tools_is_read_as_it_is() -> None:
    tokenizer = tokenizer_of(QWEN25)
    tail = [{"role": "tool", "content": "1"}, {**ANSWER, "content": "it is 1"}, ASKED[0]]
    prompt = in_turn([ASKED[0], *CALLED, *tail], tokenizer)
    text = tokenizer.decode(prompt.input_ids)
    assert "<tool_call>" in text
    assert "<tool_response>\n1\n</tool_response>" in text
    assert prompt.reference == "it is 1"
    assert [len(later.messages) for later in prompt.later] == [1]


def test_first_and_last_turns_alone() -> None:
    tokenizer = tokenizer_of(QWEN25)
    whole = in_turn(MORE, tokenizer)
    first, last = (in_turn(MORE, tokenizer, turns=which) for which in ("first", "last"))
    assert (first.input_ids, first.later, first.n_left_out) == (whole.input_ids, (), 0)
    assert last.input_ids == turn_ids(whole, ["two"], turns_of(tokenizer, "auto"))
    assert last.reference == "four"


def test_a_check_counts_the_turns() -> None:
    tokenizer = tokenizer_of(QWEN25)
    told = str(describe_prompts([in_turn(MORE, tokenizer)], tokenizer, "auto"))
    assert told.endswith("0 of 1 are cut to fit; 1 later turns")
    short = describe_prompts([in_turn(MORE, tokenizer, limit=60)], tokenizer, "auto")
    assert isinstance(short, Caution)
    assert "1 later turns are left out" in str(short)


def test_turns_without_room_are_left_out_with_those_after_them() -> None:
    tokenizer = tokenizer_of(QWEN25)
    asked = with_answers(["a" * 10, "b" * 200, "c"])
    prompt = in_turn(asked, tokenizer, limit=150)
    assert (len(prompt.later), prompt.n_left_out) == (0, 2)
    prompt = in_turn(asked, tokenizer)
    assert [later.n_tokens for later in prompt.later] == sorted(later.n_tokens for later in prompt.later)
    new = 50
    needed = prompt.later[-1].n_tokens + 3 * new
    assert [len(each.later) for each in within([prompt], needed, new)] == [2]
    (shorter,) = within([prompt], needed - 1, new)
    assert (len(shorter.later), shorter.n_left_out) == (1, 1)
    assert within([prompt], None, new) == [prompt]
    # no prompt that is made is longer than was reckoned with
    writing = turns_of(tokenizer, "auto")
    most = max(len(turn_ids(prompt, ["x" * new] * turn, writing)) for turn in range(3))
    assert most <= longest(prompt, new) <= most + 2


@pytest.mark.parametrize(
    ("row", "n_turns"),
    [
        ({"question_id": "a", "category": "coding", "turns": ["one"]}, 1),
        ({"question_id": "a", "category": "coding", "turns": ["one", "two"]}, 2),
        ({"question_id": "a", "category": "coding", "messages": [ASKED[0]]}, 1),
        ({"question_id": "a", "category": "coding", "messages": [ASKED[0], ASKED[0]]}, 2),
        ({"question_id": "a", "category": "coding", "messages": MORE}, 2),
    ],
)
def test_speed_benchs_prepared_rows_are_read_as_they_are(
    row: dict[str, Any], n_turns: int, tmp_path: Path
) -> None:
    path = tmp_path / "speed.jsonl"
    path.write_text(json.dumps(row))
    loaded = load_examples(str(path), "all")
    assert (loaded[0].id, loaded[0].category) == ("a", "coding")
    prompt = in_turn(loaded[0].messages, tokenizer_of(QWEN25))
    assert 1 + len(prompt.later) == n_turns
