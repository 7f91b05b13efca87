"""Conversations are read from rows of any kind; of what the template writes exactly the answers are trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specalign.data import Columns, Conversing, Example, Prompt, encode_prompts, load_examples
from specalign.data.dialogue import KEPT
from specalign.errors import UserError
from specalign.models.load import load_tokenizer
from tests.data.chat_templates import GEMMA3, QWEN3, QWEN25, SMOLLM2, SPECIAL, tokenizer_of

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12).map(
    lambda text: text.replace("<", "(").replace("[", "(")
)
ASKED = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
MORE = [*ASKED, {"role": "user", "content": "three"}, {"role": "assistant", "content": "four"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"a": "number"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    """An optional system message, then users and assistants in turn; the last word is either's."""
    system = draw(st.lists(TEXTS, max_size=1))
    texts = draw(st.lists(TEXTS, min_size=1, max_size=6))
    said = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return [*({"role": "system", "content": text} for text in system), *said]


def example(messages: Sequence[dict[str, Any]], **rest: Any) -> Example:
    return Example("1", "document", messages=tuple(messages), **rest)


def encode(
    examples: Sequence[Example], tokenizer: Any, *, turns: Any = "all", limit: int = 10_000, **rest: Any
) -> list[Prompt]:
    conversing = Conversing(turns, rest.pop("arguments", {}), rest.pop("skip", False))
    return encode_prompts(
        examples,
        tokenizer,
        prompt="{document}",
        max_prompt_tokens=limit,
        conversing=conversing,
        **rest,
    )


@pytest.mark.parametrize("family", SPECIAL)
@given(messages=conversations())
@settings(max_examples=60, deadline=None)
def test_what_enters_the_loss_is_exactly_what_the_assistant_said(
    family: str, messages: list[dict[str, str]]
) -> None:
    template, end = SPECIAL[family]
    tokenizer = tokenizer_of(template)
    (prompt,) = encode([example(messages)], tokenizer)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if messages[-1]["role"] == "assistant":
        *earlier, last = answers
        assert spoken(tokenizer, prompt.reference_ids, family) == (said(last, family), end)
    else:
        earlier = answers
        assert prompt.reference_ids == ()
    found = [spoken(tokenizer, prompt.input_ids[begin:stop], family) for begin, stop in prompt.spans]
    assert found == [(said(text, family), end) for text in earlier]
    # nothing is lost and nothing is twice: with the answers taken out the rest is what the template wrote around them
    (last_only,) = encode([example(messages)], tokenizer, turns="last")
    assert last_only.spans == ()
    assert last_only.reference_ids == prompt.reference_ids
    assert tokenizer.decode(last_only.input_ids) == tokenizer.decode(prompt.input_ids)


def said(text: str, family: str) -> str:
    """As the family's template writes an answer."""
    trimmed = text.strip() if family in ("gemma3", "llama3", "mistral") else text
    return f" {trimmed}" if family in ("mistral", "none") else trimmed


def spoken(tokenizer: Any, ids: Sequence[int], family: str) -> tuple[str, str]:
    """The text of a trained span, and the token behind it."""
    return tokenizer.decode(ids[:-1]), tokenizer.convert_ids_to_tokens(ids[-1])


@given(messages=conversations(), limit=st.integers(60, 200))
@settings(max_examples=80, deadline=None)
def test_long_conversations_lose_whole_turns_from_the_left_and_never_a_system_message(
    messages: list[dict[str, str]], limit: int
) -> None:
    tokenizer = tokenizer_of(QWEN25)
    (whole,) = encode([example(messages)], tokenizer)
    try:
        (prompt,) = encode([example(messages)], tokenizer, limit=limit)
    except UserError as error:
        assert "leaves no room" in str(error)  # noqa: PT017
        return
    assert len(prompt.input_ids) <= limit
    assert prompt.n_truncated == len(whole.input_ids) - len(prompt.input_ids)
    assert prompt.reference_ids == whole.reference_ids
    text = tokenizer.decode(prompt.input_ids)
    system = messages[0]["content"] if messages[0]["role"] in KEPT else "You are Qwen."
    assert text.startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n")
    turns = text.count("<|im_start|>user")
    assert prompt.n_cut_turns == tokenizer.decode(whole.input_ids).count("<|im_start|>user") - turns
    assert len(prompt.spans) == turns - (prompt.reference_ids == () or 1)
    if turns > 1:  # what is left is the end of the whole, to the letter
        begin = text.index("<|im_start|>user")
        assert tokenizer.decode(whole.input_ids).endswith(text[begin:])


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


SHAREGPT = [
    {"from": "human", "value": "one"},
    {"from": "gpt", "value": "two"},
    {"from": "human", "value": "three"},
    {"from": "gpt", "value": "four"},
]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MORE},
        {"conversations": SHAREGPT},
        {"prompt": MORE[:3], "completion": MORE[3:]},
        {"prompt": MORE[:3], "reference": "four"},
        {"messages": json.dumps(MORE)},
        {"messages": [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in MORE]},
    ],
    ids=["messages", "conversations", "prompt", "prompt and text", "JSON in a cell", "parts"],
)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ".csv"])
def test_conversations_are_recognised_by_their_columns(
    row: dict[str, Any], ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"chat{ending}"
    if ending == ".parquet":
        pd.DataFrame([row]).to_parquet(path)
    elif ending == ".csv":
        cells = {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
        pd.DataFrame([cells]).to_csv(path, index=False)
    else:
        path.write_text(json.dumps(row if ending == ".jsonl" else [row]))
    (found,) = load_examples(str(path), "all")
    assert list(found.messages) == MORE
    assert found.reference == "four"
    assert found.document == "one"


def test_any_column_can_be_named_and_a_document_wins_otherwise(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"document": "d", "messages": MORE, "chat": ASKED, "id": "x"}])
    (usual,) = load_examples(str(path), "all")
    assert (usual.document, usual.messages) == ("d", ())
    (named,) = load_examples(str(path), "all", columns=Columns(messages="chat"))
    assert (list(named.messages), named.id) == (ASKED, "x")
    with pytest.raises(UserError, match="no column 'talk'"):
        load_examples(str(path), "all", columns=Columns(messages="talk"))


def test_conversations_with_the_same_opening_are_in_one_split(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"q{n // 2}"}, *MORE[1:]]} for n in range(40)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    openings = [
        {found.document for found in load_examples(str(path), part)} for part in ("train", "validation", "test")
    ]
    assert sum(map(len, openings)) == len(set.union(*openings)) == 20


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "empty or no list"),
        ("hello", "empty or no list"),
        ([{"content": "x"}], "message 1 has no role"),
        ([{"role": "user", "content": 3}], "message 1: its content is no text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 has parts that are no text"),
        ([{"role": "user"}], "message 1 has no content"),
        ([{"from": "alien", "value": "x"}], "message 1 is from 'alien'"),
        ([{"role": "assistant", "content": "x"}], "no message of a user"),
        ([*ASKED, {"role": "user", "content": "\ud800"}], "half a character"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "message 1 has a tool call without a name"),
    ],
)
def test_what_is_wrong_with_a_conversation_is_said_with_its_line(
    messages: Any, problem: str, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"messages": ASKED}, {"messages": messages}])
    with pytest.raises(UserError, match=f"line 2: .*{problem}"):
        load_examples(str(path), "all", columns=Columns(messages="messages"))


def test_tools_and_calls_go_through_the_template(tmp_path: Path) -> None:
    call = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "sum"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "it is 1"},
    ]
    path = write_rows(tmp_path / "a.jsonl", [{"messages": messages, "tools": [TOOL]}])
    loaded = load_examples(str(path), "all")
    assert loaded[0].messages[1]["tool_calls"] == [CALL]
    tokenizer = tokenizer_of(QWEN25)
    (prompt,) = encode(loaded, tokenizer)
    text = tokenizer.decode(prompt.input_ids)
    assert json.dumps(TOOL, sort_keys=False) in text
    ((begin, end),) = prompt.spans
    called = '\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    assert tokenizer.decode(prompt.input_ids[begin:end]) == called
    assert tokenizer.decode(prompt.reference_ids) == "it is 1<|im_end|>"
    with pytest.raises(UserError, match="tools need a chat template"):
        encode(loaded, tokenizer_of(None))


def test_a_functions_call_of_sharegpt_is_a_tool_call(tmp_path: Path) -> None:
    said = [
        {"from": "human", "value": "sum"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "it is 1"},
    ]
    (found,) = load_examples(str(write_rows(tmp_path / "a.jsonl", [{"conversations": said}])), "all")
    assert [message["role"] for message in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[1]["tool_calls"] == [CALL]


def test_a_template_that_refuses_is_one_line_with_the_row_and_can_be_skipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    twice = [ASKED[0], *ASKED]
    rows = [
        example(MORE),
        Example("odd", "d", messages=tuple(twice)),
        Example("fine", "d", messages=tuple(ASKED)),
    ]
    tokenizer = tokenizer_of(GEMMA3)
    with pytest.raises(UserError, match=r"row 'odd': the chat template refuses it: .*alternate") as caught:
        encode(rows, tokenizer)
    assert "\n" not in str(caught.value)
    assert [prompt.id for prompt in encode(rows, tokenizer, skip=True)] == ["1", "fine"]
    assert "left out 1 bad row: row 'odd'" in capsys.readouterr().err
    with pytest.raises(UserError, match="more than it keeps"):
        encode([rows[1]], tokenizer, skip=True)


THOUGHTS = TEXTS.map(lambda text: text.strip("\n")).filter(bool)


@st.composite
def thinking(draw: st.DrawFn) -> tuple[list[dict[str, str]], list[str]]:
    """A conversation whose answers may begin with thinking, and what Qwen3's template writes of each answer."""
    messages, written = [], []
    for message in draw(conversations()):
        if message["role"] == "assistant":
            text, thought = message["content"].lstrip("\n"), draw(st.one_of(st.just(""), THOUGHTS))
            block = f"<think>\n{thought}\n</think>\n\n"
            message = {**message, "content": block + text if thought else text}
            written.append(f"{block}{text}<|im_end|>")
        messages.append(message)
    return messages, written


@given(conversation=thinking())
@settings(max_examples=80, deadline=None)
def test_a_template_that_rewrites_earlier_answers_gives_each_answer_the_prompt_of_its_turn(
    conversation: tuple[list[dict[str, str]], list[str]],
) -> None:
    messages, written = conversation
    tokenizer = tokenizer_of(QWEN3)
    prompts = encode([example(messages)], tokenizer)
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if messages[-1]["role"] != "assistant":
        places, written = (
            [*places, len(messages)],
            [*written, ""],
        )  # the last question is the teacher's to answer
    for prompt, place, answer in zip(prompts, places, written, strict=True):
        rendered = tokenizer.apply_chat_template(
            messages[:place], add_generation_prompt=True, return_dict=False
        )
        assert prompt.input_ids == tuple(rendered)
        assert tokenizer.decode(prompt.reference_ids) == answer
        assert prompt.spans == ()
    ids = [prompt.id for prompt in prompts]
    assert ids == (["1"] if len(ids) == 1 else [f"1/{turn}" for turn, _ in enumerate(ids, start=1)])
    assert {prompt.row_id for prompt in prompts} == {"1"}


def test_a_template_that_rewrites_thinking_has_a_row_for_each_answer_even_where_the_data_have_none() -> None:
    """The teacher's own answers may think."""
    lazy = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert [prompt.id for prompt in encode([example(MORE)], tokenizer_of(lazy))] == ["1/1", "1/2"]
    (one,) = encode([example(MORE)], tokenizer_of(SMOLLM2))
    assert (one.id, one.row_id) == ("1", "1")


def test_ids_of_turns_are_distinct_from_those_of_other_rows() -> None:
    rows = [replace(example(MORE), id="a"), replace(example(ASKED), id="a/1")]
    assert [prompt.id for prompt in encode(rows, tokenizer_of(QWEN3))] == ["a/1", "a/2", "a/1#2"]


def test_each_turns_prompt_loses_its_oldest_turns_by_itself() -> None:
    tokenizer = tokenizer_of(QWEN3)
    long = [{**message, "content": message["content"] * 20} for message in MORE]
    first, second = encode([example(long)], tokenizer, limit=200)
    assert (first.n_cut_turns, second.n_cut_turns) == (0, 1)
    assert tokenizer.decode(second.input_ids).startswith("<|im_start|>user\nthreethree")
    assert tokenizer.decode(first.reference_ids).endswith("twotwo<|im_end|>")


def test_an_answer_before_the_first_question_is_read_alone() -> None:
    greeting = {"role": "assistant", "content": "hello"}
    (prompt,) = encode([example([greeting, *MORE])], tokenizer_of(SMOLLM2))
    assert [tokenizer_of(SMOLLM2).decode(prompt.input_ids[a:b]) for a, b in prompt.spans] == ["two<|im_end|>"]
    each = encode([example([greeting, *MORE])], tokenizer_of(QWEN3))
    assert [prompt.reference for prompt in each] == ["two", "four"]


def test_arguments_reach_the_template_and_nothing_else_is_taken() -> None:
    tokenizer = tokenizer_of(QWEN3)
    (prompt,) = encode([example(ASKED)], tokenizer, arguments={"enable_thinking": False})
    assert tokenizer.decode(prompt.input_ids).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(prompt.reference_ids) == "two<|im_end|>"
    document = Example("1", "one")
    (prompt,) = encode([document], tokenizer, arguments={"enable_thinking": False})
    assert tokenizer.decode(prompt.input_ids).endswith("</think>\n\n")
    for template, problem in ((SMOLLM2, "does not ask for it"), (None, "no chat template to take it")):
        with pytest.raises(UserError, match=f"'enable_thinking': .*{problem}"):
            encode([document], tokenizer_of(template), arguments={"enable_thinking": False})


def test_an_answer_that_begins_inside_of_a_token_is_tokenised_as_it_would_be_generated() -> None:
    """The prompt ends with a newline, the answer begins with one, and the tokenizer knows both together."""
    tokenizer = tokenizer_of(SMOLLM2)
    messages = [
        MORE[0],
        {"role": "assistant", "content": "\ntwo"},
        MORE[2],
        {"role": "assistant", "content": "\nx"},
    ]
    (prompt,) = encode([example(messages)], tokenizer)
    ((begin, end),) = prompt.spans
    assert tokenizer.decode(prompt.input_ids[begin:end]) == "\ntwo<|im_end|>"
    assert tokenizer.decode(prompt.input_ids[:begin]).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(prompt.reference_ids) == "\nx<|im_end|>"


def test_documents_prompts_are_not_for_conversations_nor_all_turns_for_encoders() -> None:
    tokenizer = tokenizer_of(SMOLLM2)
    with pytest.raises(UserError, match=r"data\.prompt is for documents"):
        encode_prompts([example(ASKED)], tokenizer, prompt="Sum up: {document}", max_prompt_tokens=99)
    with pytest.raises(UserError, match="without an encoder"):
        encode([example(ASKED)], tokenizer, keep_end=True)
    with pytest.raises(UserError, match="1 of its questions have no answer"):
        encode([example([ASKED[0], {"role": "assistant"}, *ASKED])], tokenizer)


@pytest.mark.slow
def test_the_real_smollm2_is_trained_on_answers_alone() -> None:
    tokenizer = load_tokenizer("builtin:smollm2")
    said = [
        "A bear hides in the forest.",
        "\nThe cavern opens onto the sunlit plaza.  ",
        "Café, naïve: 1 + 1 = 2",
    ]
    turns = [(f"Question {n}?", answer) for n, answer in enumerate(said)]
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    (prompt,) = encode([example(messages)], tokenizer)
    spans = [list(prompt.input_ids[begin:end]) for begin, end in prompt.spans]
    assert [tokenizer.decode(ids) for ids in spans] == [f"{text}<|im_end|>" for text in said[:2]]
    assert tokenizer.decode(list(prompt.reference_ids)) == f"{said[2]}<|im_end|>"
    for begin, end in prompt.spans:
        assert str(tokenizer.decode(list(prompt.input_ids[:begin]))).endswith("<|im_start|>assistant\n")
        assert str(tokenizer.decode(list(prompt.input_ids[end:]))).startswith("\n<|im_start|>user\n")
