"""From examples to token ids: instruction, chat template, truncation."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from specalign.data.bad_rows import BadRow, listed, require_usable
from specalign.data.cutting import cut_before, token_starts
from specalign.data.dialogue import (
    Dialogue,
    Span,
    answer_ids,
    answered,
    apart,
    fitted,
    keeps_thinking,
    with_earlier_spans,
)
from specalign.data.examples import Example, RowError, lone_surrogate, with_distinct_ids
from specalign.data.in_turn import Later, in_turn
from specalign.data.splits import document_hash
from specalign.data.tokenised import require_ids
from specalign.data.turns import Template, Turns, end_of_turn, saying, turns_of
from specalign.errors import UserError
from specalign.templates import PLACE
from specalign.terminal import say


@dataclass(frozen=True)
class Prompt:
    """One example as token ids."""

    id: str
    input_ids: tuple[int, ...]
    """The whole prompt, template included; of a conversation all that stands before its last answer."""
    reference_ids: tuple[int, ...]
    """The reference as a response, with the token that ends a turn; empty without a reference."""
    reference: str = ""
    category: str = ""
    n_truncated: int = 0
    """Tokens of document or conversation that were cut off to fit."""
    spans: tuple[Span, ...] = field(default=(), repr=False)
    """Where ``input_ids`` have earlier answers that are trained on too."""
    n_cut_turns: int = field(default=0, repr=False)
    """Oldest turns of a conversation that were left out to fit."""
    conversation: str = field(default="", repr=False)
    """Id of the conversation of which this is one answer's prompt; empty where it has all that is asked of it."""
    dialogue: Dialogue | None = field(default=None, repr=False)
    """Where answers have prompts of their own, the messages of ``input_ids``; in training before any were cut."""
    later: tuple[Later, ...] = field(default=(), repr=False)
    """Its later turns."""
    n_left_out: int = field(default=0, repr=False)
    """Turns at its end that were left out to fit."""
    document: str = field(default="", repr=False, compare=False)
    """Hash of its row's document (:func:`~specalign.data.splits.document_hash`)."""

    @property
    def row_id(self) -> str:
        """Id of the row that it was made of, whose answers are counted together."""
        return self.conversation or self.id


@dataclass(frozen=True)
class Conversing:
    """What is done with conversations, and with chat templates."""

    turns: Literal["last", "all", "in_turn", "first"] = "last"
    """last: the prompt is all that stands before the last answer; all: its earlier answers are trained on too, and
    have prompts of their own where the template rewrites them when a conversation goes on;
    in_turn: each answer has a prompt, with what was decoded before it; first: the first of these alone."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the chat template."""
    skip_bad_rows: bool = False
    """Leave out, and list, the conversations that the template refuses, as long as they are not most."""


def encode_prompts(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str,
    template: Template = "auto",
    max_prompt_tokens: int,
    keep_end: bool = False,
    conversing: Conversing = Conversing(),
) -> list[Prompt]:
    """Tokenise ``examples``; only the document is cut where the prompt exceeds ``max_prompt_tokens``.

    ``prompt`` is the user's message with ``{document}`` in it. ``chat`` wraps it in the tokenizer's chat
    template, ``plain`` adds the special tokens of plain text alone, ``auto`` is chat where there is a
    template. A plain prompt goes on: an end-of-sequence token that the tokenizer adds is left off, unless
    ``keep_end`` (for encoders). A document is cut after a sentence or a word where one ends near the limit, and
    between characters in any case. A repeated id gets a number
    behind it. A conversation is written by the template as it is, and loses its oldest turns where it is too long
    (see :mod:`specalign.data.dialogue`). Token ids stay what they are (:mod:`specalign.data.tokenised`).
    Raises UserError for a prompt without its place, a missing or failing chat template, a limit that leaves no room
    for a document, a row that the tokenizer refuses, by its id, conversations that the template refuses, by theirs,
    and a ``prompt`` of more than its place where there are conversations.
    """
    if PLACE not in prompt:
        raise UserError(f"the prompt has no {PLACE}: {prompt!r}")
    if half := lone_surrogate(prompt):
        raise UserError(f"the prompt has half a character (a lone surrogate, {half})")
    turns = turns_of(tokenizer, template, keep_end=keep_end, arguments=conversing.arguments)
    end = end_of_turn(tokenizer, template)
    if prompt.strip() != PLACE and any(example.messages for example in examples):
        raise UserError(f"data.prompt is for documents, and there are conversations: leave it at {PLACE}")
    if keep_end and conversing.turns == "all":
        raise UserError("data.turns = all is for models without an encoder, which reads a conversation once")
    which: str = conversing.turns
    if which == "all" and any(example.messages for example in examples) and not keeps_thinking(turns):
        which = "each"
    written: list[Prompt] = []
    bad: list[BadRow] = []
    for example in with_distinct_ids(examples):
        encode = partial(_encode, example, turns, end, which, prompt, max_prompt_tokens)
        try:
            made = saying(f"row {example.id!r} is refused", encode)
            written += [replace(each, document=document_hash(example)) for each in made]
        except RowError as error:
            bad.append(BadRow(f"row {example.id!r}", str(error)))
    require_usable("the rows", len(examples) - len(bad), bad, skip=conversing.skip_bad_rows)
    if bad:
        say(f"specalign: left out {listed(bad)}", file=sys.stderr)
    return with_distinct_ids(written)


def _encode(
    example: Example, turns: Turns, end: int | None, which: str, prompt: str, limit: int
) -> list[Prompt]:
    """The prompts of a row: one, or one for each answer of a conversation. Raises RowError."""
    if example.messages:
        return _converse(example, turns, end, which, limit)
    if example.input_ids:
        return [_given(example, len(turns.tokenizer), limit)]
    return [_ask(example, turns, end, prompt, limit)]


def _converse(example: Example, turns: Turns, end: int | None, which: str, limit: int) -> list[Prompt]:
    """A conversation up to its last answer, up to each of them, or up to its first one with what follows.

    ``each`` is ``all`` where the template rewrites answers. Raises RowError.
    """
    if which in ("in_turn", "first"):
        return [_in_turn(example, turns, limit, first_alone=which == "first")]
    parts = [] if which == "last" else apart(example)
    if which == "all" or len(parts) < 2:
        whole, dialogue = _last_answer(example, turns, end, limit)
        kept = with_earlier_spans(dialogue, whole.input_ids, turns, end) if parts else (whole.input_ids, ())
        if kept is not None:
            return [replace(whole, input_ids=tuple(kept[0]), spans=tuple(kept[1]))]
    answers = [_last_answer(part, turns, end, limit)[0] for part in parts]
    return [
        replace(answer, conversation=example.id, dialogue=answered(part)[0])
        for part, answer in zip(parts, answers, strict=True)
    ]


def _last_answer(example: Example, turns: Turns, end: int | None, limit: int) -> tuple[Prompt, Dialogue]:
    """The prompt of a conversation's last answer, and the messages that it has."""
    history, answer = answered(example)
    found = fitted(history, turns, limit)
    made = Prompt(
        example.id,
        tuple(found.input_ids),
        tuple(answer_ids(found.dialogue, answer, turns, end)) if answer else (),
        answer["content"] if answer else "",
        example.category,
        found.n_cut_tokens,
        n_cut_turns=found.n_cut_turns,
    )
    return made, found.dialogue


def _given(example: Example, n_ids: int, limit: int) -> Prompt:
    """Token ids as they are. Raises RowError."""
    require_ids(example, n_ids, limit)
    return Prompt(example.id, example.input_ids, example.reference_ids, example.reference, example.category)


def _in_turn(example: Example, turns: Turns, limit: int, *, first_alone: bool) -> Prompt:
    found = in_turn(example, turns, limit)
    return Prompt(
        example.id,
        tuple(found.first.input_ids),
        tuple(turns.text_ids(found.reference)),
        found.reference,
        example.category,
        found.first.n_cut_tokens,
        n_cut_turns=found.first.n_cut_turns,
        dialogue=found.first.dialogue,
        later=() if first_alone else found.later,
        n_left_out=0 if first_alone else found.n_left_out,
    )


def _ask(example: Example, turns: Turns, end: int | None, prompt: str, limit: int) -> Prompt:
    """The prompt about a document, which is cut to fit."""

    def ids(document: str) -> list[int]:
        return turns.prompt_ids(prompt.replace(PLACE, document))

    document, encoded, n_truncated = example.document, ids(example.document), 0
    if not encoded:
        raise UserError(
            f"the prompt of {example.id!r} has no tokens: {type(turns.tokenizer).__name__} does not fit the files in "
            "the model's folder; save the tokenizer again from where the model came from"
        )
    if len(encoded) > limit:
        starts = token_starts(turns.tokenizer, document)
        keep = len(starts) - (len(encoded) - limit)
        while keep > 0 and len(encoded) > limit:  # re-tokenised text can be a token longer than its parts
            document = example.document[: cut_before(example.document, starts[keep])]
            encoded = ids(document)
            keep -= max(1, len(encoded) - limit)
        if len(encoded) > limit or not document.strip():
            raise UserError(f"max_prompt_tokens = {limit} leaves no room for the document of {example.id!r}")
        n_truncated = len(starts) - len(turns.text_ids(document))
    reference = turns.text_ids(example.reference) if example.reference else []
    ending = [end] if reference and end is not None else []
    return Prompt(
        example.id, tuple(encoded), (*reference, *ending), example.reference, example.category, n_truncated
    )
