"""Conversations as token ids: which of them the assistant wrote, and how long ones are cut.

An answer is found by the template itself. Messages 1..k, written up to where the model goes on, are the prompt of
answer k+1; the ids by which messages 1..k+1 are longer are the answer. Nothing is searched for in texts. Where a
template rewrites answers when a conversation goes on, no text has all of them as they were given: each has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specalign.data.conversations import Message
from specalign.data.cutting import cut_before, token_starts
from specalign.data.examples import Example, RowError
from specalign.data.turns import ASKED, PROBE, THINKING, Turns

KEPT = ("system", "developer")
"""Roles of the messages at the beginning that are never cut."""
Span = tuple[int, int]
"""Begin and end of some tokens."""


@dataclass(frozen=True)
class Dialogue:
    """The messages before an answer, and the tools that they may speak of."""

    messages: tuple[Message, ...]
    tools: tuple[Message, ...] = ()

    def ids(self, turns: Turns, *, goes_on: bool = True) -> list[int]:
        """As the template writes it. Raises RowError where it refuses."""
        if not turns.chat and (self.tools or any("tool_calls" in message for message in self.messages)):
            raise RowError("tools need a chat template, and there is none")
        try:
            return turns.conversation_ids(self.messages, self.tools, goes_on=goes_on)
        except Exception as error:  # templates are programs, tokenizers raise what their languages do
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RowError(f"the chat template refuses it: {reason}") from None

    def text(self, turns: Turns, *, goes_on: bool = True) -> str:
        """The same as text; of a conversation that :meth:`ids` has not refused."""
        return turns.conversation_text(self.messages, self.tools, goes_on=goes_on)

    def first(self, n: int) -> Dialogue:
        """The first ``n`` messages."""
        return replace(self, messages=self.messages[:n])


@dataclass(frozen=True)
class Fitted:
    """A dialogue that is short enough, and what that cost."""

    dialogue: Dialogue
    input_ids: list[int]
    n_cut_turns: int = 0
    n_cut_tokens: int = 0


def answered(example: Example) -> tuple[Dialogue, Message | None]:
    """The messages before the last answer, and this; None where the conversation ends with a question.

    Raises RowError where an answer is missing in between.
    """
    *before, last = example.messages
    history = before if last["role"] == "assistant" else [*before, last]
    missing = sum("content" not in message for message in history)
    if missing:
        raise RowError(
            f"{missing} of its questions have no answer before the next one: a benchmark has them answered in turn, "
            "training needs the answers"
        )
    return Dialogue(tuple(history), example.tools), last if last["role"] == "assistant" else None


def answer_ids(dialogue: Dialogue, answer: Message, turns: Turns, end: int | None) -> list[int]:
    """The tokens of an answer, up to and with the token that ends a turn.

    Where a template writes an answer otherwise than what it lets the model go on from (it strips the thinking that
    it has just begun), they are the answer's own text. Raises RowError for a tool call there.
    """
    prompt = dialogue.ids(turns)
    longer = replace(dialogue, messages=(*dialogue.messages, answer))
    whole = longer.ids(turns, goes_on=False)
    begun = dialogue.text(turns)
    if whole[: len(prompt)] == prompt:
        found = _up_to(whole[len(prompt) :], end)
    elif (text := longer.text(turns, goes_on=False)).startswith(begun):
        found = _up_to(turns.text_ids(text[len(begun) :]), end)
    elif answer.get("tool_calls"):
        raise RowError("the chat template does not write a tool call where it lets the model go on")
    else:
        found = turns.text_ids(answer["content"])
    return found if end is None or found[-1:] == [end] else [*found, end]


def with_earlier_spans(
    dialogue: Dialogue, input_ids: Sequence[int], turns: Turns, end: int | None
) -> tuple[list[int], list[Span]] | None:
    """The prompt of the last answer, and where it has the earlier ones; None where the template rewrites these.

    Where a token reaches over the beginning of an answer, the prompt is tokenised in parts, as it would be were the
    answer generated. An answer before the first question is read alone.
    """
    spans: list[Span] = []
    for place in _answers(dialogue.messages):
        prompt = dialogue.first(place).ids(turns)
        whole = dialogue.first(place + 1).ids(turns, goes_on=False)
        stop = len(prompt) + len(_up_to(whole[len(prompt) :], end))
        if whole[: len(prompt)] != prompt or list(input_ids[:stop]) != whole[:stop]:
            return _in_parts(dialogue, turns, end)
        spans.append((len(prompt), stop))
    return list(input_ids), _not_empty(spans)


def _in_parts(dialogue: Dialogue, turns: Turns, end: int | None) -> tuple[list[int], list[Span]] | None:
    final, done = dialogue.text(turns), 0
    ids: list[int] = []
    spans: list[Span] = []
    for place in _answers(dialogue.messages):
        prompt = dialogue.first(place).text(turns)
        whole = dialogue.first(place + 1).text(turns, goes_on=False)
        if not (whole.startswith(prompt) and final.startswith(whole)):
            return None
        ids += turns.text_ids(final[done : len(prompt)])
        answer, done = turns.text_ids(final[len(prompt) : len(whole)]), len(whole)
        spans.append((len(ids), len(ids) + len(_up_to(answer, end))))
        ids += answer
    return [*ids, *turns.text_ids(final[done:])], _not_empty(spans)


def keeps_thinking(turns: Turns) -> bool:
    """Whether the template leaves the thinking of earlier answers where it is; one that refuses it counts as such."""
    for begin, end in THINKING:
        thought = {"role": "assistant", "content": f"{begin}\n{PROBE}\n{end}\n\n{PROBE}"}
        dialogue = Dialogue((ASKED, thought, ASKED))
        try:
            if with_earlier_spans(dialogue, dialogue.ids(turns), turns, None) is None:
                return False
        except RowError:
            continue
    return True


def apart(example: Example) -> list[Example]:
    """A conversation up to each of its answers, and to the question that it may end with."""
    ends = [place + 1 for place in _answers(example.messages)]
    if example.messages[-1]["role"] != "assistant":
        ends.append(len(example.messages))
    return [
        replace(example, id=f"{example.id}/{turn}", messages=example.messages[:end])
        for turn, end in enumerate(ends, start=1)
    ]


def _answers(messages: Sequence[Message]) -> list[int]:
    """Places of the assistant's messages, from the first question on."""
    asked = next((place for place, message in enumerate(messages) if message["role"] == "user"), len(messages))
    return [place for place, message in enumerate(messages) if place > asked and message["role"] == "assistant"]


def _not_empty(spans: Sequence[Span]) -> list[Span]:
    return [(begin, end) for begin, end in spans if begin < end]


def fitted(dialogue: Dialogue, turns: Turns, limit: int) -> Fitted:
    """The dialogue within ``limit`` tokens: its oldest turns are left out, whole; a turn begins with a user's message.

    System messages at the beginning stay. Where the last turn alone is too long, its user's message is cut after a
    sentence or a word, as a document is. Raises RowError where even that does not do.
    """
    ids = whole = dialogue.ids(turns)
    system = next(
        (place for place, message in enumerate(dialogue.messages) if message["role"] not in KEPT),
        len(dialogue.messages),
    )
    starts = [
        place for place, message in enumerate(dialogue.messages) if place > system and message["role"] == "user"
    ]
    head, shorter, n_turns = dialogue.messages[:system], dialogue, 0
    while len(ids) > limit and n_turns < len(starts):
        shorter = replace(dialogue, messages=(*head, *dialogue.messages[starts[n_turns] :]))
        ids, n_turns = shorter.ids(turns), n_turns + 1
    if len(ids) > limit:
        shorter, ids = _cut(shorter, turns, limit, len(ids))
    return Fitted(shorter, ids, n_turns, len(whole) - len(ids))


def _cut(dialogue: Dialogue, turns: Turns, limit: int, n_ids: int) -> tuple[Dialogue, list[int]]:
    """With the last message of a user cut to fit."""
    last = max(place for place, message in enumerate(dialogue.messages) if message["role"] == "user")
    text = dialogue.messages[last]["content"]
    starts = token_starts(turns.tokenizer, text)
    keep = len(starts) - (n_ids - limit)
    while keep > 0:
        short = text[: cut_before(text, starts[keep])]
        message = {**dialogue.messages[last], "content": short}
        made = replace(dialogue, messages=(*dialogue.messages[:last], message, *dialogue.messages[last + 1 :]))
        ids = made.ids(turns)
        if len(ids) <= limit and short.strip():
            return made, ids
        keep -= max(1, len(ids) - limit)
    raise RowError(f"max_prompt_tokens = {limit} leaves no room for its last question")


def _up_to(ids: Sequence[int], end: int | None) -> list[int]:
    """Up to the last token that ends a turn; all of them without one."""
    last = max((place for place, id_ in enumerate(ids) if id_ == end), default=len(ids) - 1)
    return list(ids[: last + 1])
