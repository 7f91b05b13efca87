"""Conversations in rows: OpenAI's messages, ShareGPT's conversations, prompts that are lists of messages, and turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from specalign.data.examples import Example, RowError, require_characters

COLUMNS = ("messages", "conversations", "conversation", "prompt", "turns")
"""Columns in which a conversation is looked for, in this order."""
ANSWERS = ("completion", "response")
"""Columns of the answer to a ``prompt`` that is a list of messages."""
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
}
"""ShareGPT's ``from`` -> the role that templates know."""
ANSWER: Mapping[str, Any] = {"role": "assistant"}
"""Stands where an answer belongs that the data does not have."""

Message = Mapping[str, Any]


def conversation_column(row: Mapping[str, Any]) -> str | None:
    """The first of the usual columns that holds messages or turns; None where the row is no conversation."""
    return next((name for name in COLUMNS if _is_conversation(name, row.get(name))), None)


def example_from_conversation(
    row: Mapping[str, Any], column: str, reference_column: str, default_id: str
) -> Example:
    """One example from a row whose ``column`` holds messages; raises RowError.

    Roles and contents become OpenAI's. Its document, by which splits are made, is what stands before the first
    answer; its reference the last answer, from the answer's own column where the messages end before it.
    """
    if column not in row:
        raise RowError(f"no column {column!r} (columns: {', '.join(map(str, row))})")
    messages = _messages(row[column], column)
    messages += _answer(row, reference_column) if messages[-1]["role"] != "assistant" else []
    if all(message["role"] != "user" for message in messages):
        raise RowError(f"column {column!r} has no message of a user")
    category, id_ = row.get("category"), row.get("id", row.get("question_id"))
    last = messages[-1]
    made = Example(
        default_id if id_ is None else str(id_),
        _opening(messages),
        last.get("content", "") if last["role"] == "assistant" else "",
        category if isinstance(category, str) else "",
        tuple(messages),
        tuple(_tools(row.get("tools"))),
    )
    require_characters({column: json.dumps([made.messages, made.tools], ensure_ascii=False), "id": made.id})
    return made


def with_answers(users: Sequence[str], answers: Sequence[str] = ()) -> tuple[Message, ...]:
    """The messages of a user and the answers between them, as far as there are any."""
    found: list[Message] = []
    for place, text in enumerate(users):
        found.append({"role": "user", "content": text})
        answer = answers[place] if place < len(answers) else ""
        if answer or place + 1 < len(users):
            found.append({**ANSWER, "content": answer} if answer else ANSWER)
    return tuple(found)


def _is_conversation(name: str, value: Any) -> bool:
    value = _plain(value)
    if name == "turns":
        return isinstance(value, list) and bool(value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _messages(value: Any, column: str) -> list[Message]:
    found = _plain(value)
    if not isinstance(found, list) or not found:
        raise RowError(f"column {column!r} is empty or no list of messages")
    if all(isinstance(each, str) for each in found):
        return list(with_answers(found))
    messages = [_message(each, place) for place, each in enumerate(found, start=1)]
    unanswered = all(message["role"] != "assistant" for message in messages)
    users = [message["role"] for message in messages].count("user")
    return _asked_in_turn(messages) if unanswered and users > 1 else messages


def _asked_in_turn(messages: Sequence[Message]) -> list[Message]:
    """With the place of an answer between users' messages that follow each other."""
    found = list(messages[:1])
    for before, message in pairwise(messages):
        found += [ANSWER, message] if before["role"] == message["role"] == "user" else [message]
    return found


def _message(found: Any, place: int) -> Message:
    """Role and content, what else it has kept; raises RowError with its number, from 1 on."""
    if not isinstance(found, dict) or not ({"role", "from"} & found.keys()):
        raise RowError(f"message {place} has no role")
    if "role" in found:
        role, content = found["role"], found.get("content")
        rest = {key: value for key, value in found.items() if key not in ("role", "content")}
    else:
        role, content, rest = SPEAKERS.get(str(found["from"]).lower()), found.get("value"), {}
        if role is None:
            raise RowError(f"message {place} is from {found['from']!r} (known: {', '.join(SPEAKERS)})")
        if str(found["from"]).lower() == "function_call":
            content, rest = "", {"tool_calls": [{"function": _json(content)}]}
    if not isinstance(role, str) or not role:
        raise RowError(f"message {place} has no role")
    text = _text(content, place)
    if "tool_calls" in rest:
        rest["tool_calls"] = [_call(call, place) for call in _list(rest["tool_calls"])]
    if text is None and not rest.get("tool_calls"):
        raise RowError(f"message {place} has no content")
    return {"role": role, "content": text or "", **rest}


def _text(content: Any, place: int) -> str | None:
    """A text, or the joined parts of one."""
    if isinstance(content, list):
        parts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise RowError(f"message {place} has parts that are no text")
        return "".join(parts)
    if content is not None and not isinstance(content, str):
        raise RowError(f"message {place}: its content is no text")
    return content


def _call(call: Any, place: int) -> dict[str, Any]:
    """A tool call with its arguments as an object, which templates write as JSON themselves."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"message {place} has a tool call without a name")
    whole = {key: value for key, value in call.items() if key not in ("name", "arguments")}
    arguments = _json(function.get("arguments", {}))
    return {"type": "function", **whole, "function": {**function, "arguments": arguments}}


def _tools(value: Any) -> list[dict[str, Any]]:
    tools = _list(value)
    if not all(isinstance(tool, dict) for tool in tools):
        raise RowError("column 'tools' is no list of tool definitions")
    return tools


def _answer(row: Mapping[str, Any], reference_column: str) -> list[Message]:
    for name in (reference_column, *ANSWERS):
        found = _plain(row.get(name))
        if isinstance(found, str) and found:
            return [{**ANSWER, "content": found}]
        if isinstance(found, list) and found and isinstance(found[0], dict):
            return [_message(each, place) for place, each in enumerate(found, start=1)]
    return []


def _opening(messages: Sequence[Message]) -> str:
    """The texts before the first answer to a user."""
    begin = next(place for place, message in enumerate(messages) if message["role"] == "user")
    end = begin
    while end < len(messages) and messages[end]["role"] != "assistant":
        end += 1
    return "\n".join(message.get("content", "") for message in messages[:end])


def _list(value: Any) -> list[Any]:
    found = _plain(value)
    return found if isinstance(found, list) else [] if found in (None, "") else [found]


def _plain(value: Any) -> Any:
    """Lists and dicts without the empty fields that tables add; a text that is a JSON list as that list."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = _json(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _inner(inner) for key, inner in value.items() if inner is not None}
    return [_inner(inner) for inner in value] if isinstance(value, list | tuple) else value


def _inner(value: Any) -> Any:
    """The same inside of a cell, where texts are texts."""
    return value if isinstance(value, str) else _plain(value)


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
