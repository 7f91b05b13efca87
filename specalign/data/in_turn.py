"""Conversations that are decoded turn by turn: what is asked first, and what after each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specalign.data.conversations import ANSWER, Message
from specalign.data.dialogue import Dialogue, Fitted, fitted
from specalign.data.examples import Example
from specalign.data.turns import Turns

SHORT_ANSWER = "."
"""Stands for each answer where the lengths of later prompts are found."""
ASKS = ("user", "tool")
"""Roles that are answered."""


@dataclass(frozen=True)
class Later:
    """A later turn."""

    messages: tuple[Message, ...]
    """What follows the answer before."""
    reference: str
    """The data's answer; empty without one."""
    n_tokens: int
    """Of its prompt with answers of a token each: what the data bring to it."""


@dataclass(frozen=True)
class InTurn:
    """A conversation as a benchmark decodes it."""

    first: Fitted
    reference: str
    later: tuple[Later, ...]
    n_left_out: int
    """Turns at its end whose prompts would be too long."""


def in_turn(example: Example, turns: Turns, limit: int) -> InTurn:
    """The turns of a conversation, of which each prompt has at most ``limit`` tokens of the data.

    An answer of the data is decoded anew, but one that calls tools: what they gave stands in the data too, so such a
    call is read as it is. Raises RowError where the template refuses.
    """
    (asked, reference), *rest = _parts(example.messages)
    first = fitted(Dialogue(asked, example.tools), turns, limit)
    so_far, later = first.dialogue, list[Later]()
    for messages, answer in rest:
        so_far = continued(so_far, SHORT_ANSWER, messages)
        n_tokens = len(so_far.ids(turns))
        if n_tokens > limit:
            break
        later.append(Later(messages, answer, n_tokens))
    return InTurn(first, reference, tuple(later), len(rest) - len(later))


def continued(dialogue: Dialogue, answer: str, messages: Sequence[Message]) -> Dialogue:
    """With an answer and what follows it."""
    return replace(dialogue, messages=(*dialogue.messages, {**ANSWER, "content": answer}, *messages))


def _parts(messages: Sequence[Message]) -> list[tuple[tuple[Message, ...], str]]:
    """(What is asked, the data's answer) of each turn."""
    parts: list[tuple[tuple[Message, ...], str]] = []
    asked: list[Message] = []
    for message in messages:
        answers = message["role"] == "assistant" and not message.get("tool_calls")
        if answers and any(each["role"] in ASKS for each in asked):
            parts.append((tuple(asked), message.get("content", "")))
            asked = []
        else:
            asked.append(message)
    return [*parts, (tuple(asked), "")] if asked else parts
