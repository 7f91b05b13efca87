"""What a tokenizer writes around a text: the chat template's turns, and the special tokens of plain text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from specalign.data.examples import RowError
from specalign.errors import UserError, unknown

Template = Literal["auto", "chat", "plain"]
DATE = date(2025, 1, 1)
"""Written where a chat template asks for today's date: prompts, and what is stored of them, stay as they were."""
CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{mark}', '{DATE:%{mark}}')" for mark in "AaBbdmYyjHIMSp")
    + " }}{%- endmacro %}{{ '' }}"
)
"""Stands before such a template, and in place of its own function."""
PROBE = "specalign"
"""A text by which the place of a message in the template is found."""
ASKED = {"role": "user", "content": PROBE}
THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""What tokenizers call the tokens around thinking."""


@dataclass(frozen=True)
class Turns:
    """How prompts and responses are written for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    chat: bool
    """By the chat template; else as plain text."""
    keep_end: bool = False
    """Leave the end-of-sequence token that the tokenizer adds to plain text: an encoder has read it in training."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Given to the chat template."""

    def prompt_ids(self, text: str) -> list[int]:
        """The user's message as token ids, up to where the model goes on."""
        if self.chat:
            return self.chat_ids([{"role": "user", "content": text}], goes_on=True)
        ids = list(self.tokenizer(text)["input_ids"])
        return ids if self.keep_end else without_end(self.tokenizer, ids)

    def conversation_ids(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), *, goes_on: bool
    ) -> list[int]:
        """Messages as token ids; with ``goes_on`` up to where the model's answer begins.

        By the chat template, which may raise whatever it likes; as plain text every message is a line behind its
        speaker's name, and an answer ends with the end-of-sequence token.
        """
        return self.chat_ids(messages, tools, goes_on=goes_on) if self.chat else self._lines(messages, goes_on)

    def chat_ids(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), *, goes_on: bool
    ) -> list[int]:
        """What the chat template writes."""
        return list(self._chat(messages, tools, add_generation_prompt=goes_on, return_dict=False))

    def conversation_text(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), *, goes_on: bool
    ) -> str:
        """What :meth:`conversation_ids` are the ids of."""
        if self.chat:
            return str(self._chat(messages, tools, add_generation_prompt=goes_on, tokenize=False))
        return str(self.tokenizer.decode(self._lines(messages, goes_on)))

    def _chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], **options: Any
    ) -> Any:
        options |= {"tools": list(tools)} if tools else {}
        return _write(self.tokenizer, messages, **options, **self.arguments)

    def _lines(self, messages: Sequence[Mapping[str, Any]], goes_on: bool) -> list[int]:
        """Tokenised piece by piece, so that what is there stays as it is when the conversation goes on."""
        end = self.tokenizer.eos_token_id
        ids = without_end(self.tokenizer, list(self.tokenizer("")["input_ids"]))
        for place, message in enumerate(messages):
            ids += self.text_ids(("\n" if place else "") + f"{message['role'].capitalize()}:")
            ids += self.text_ids(f" {message['content']}")
            ids += [end] if message["role"] == "assistant" and end is not None else []
        ids += self.text_ids("\nAssistant:") if goes_on else []
        return [*ids, end] if self.keep_end and goes_on and adds_end(self.tokenizer) else ids

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text alone."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def turns_of(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    *,
    keep_end: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Turns:
    """``chat``, ``plain``, or ``auto``: chat where there is a template, which is given ``arguments``.

    Raises UserError for a missing chat template, for one that fails or leaves the message out, and for arguments that
    nothing asks for.
    """
    if template not in ("auto", "chat", "plain"):
        raise unknown("prompt template", template, ("auto", "chat", "plain"))
    if template == "chat" and not tokenizer.chat_template:
        raise UserError('the tokenizer has no chat template; use template = "plain"')
    chat = template != "plain" and bool(tokenizer.chat_template)
    arguments = dict(arguments or {})
    if chat:
        _require_message(tokenizer, arguments)
    for name in arguments:
        if not chat or not re.search(rf"\b{re.escape(name)}\b", tokenizer.get_chat_template()):
            of = "the chat template does not ask for it" if chat else "there is no chat template to take it"
            raise UserError(f"data.template_arguments: {name!r}: {of}")
    return Turns(tokenizer, chat, keep_end, arguments)


def end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str = "auto") -> int | None:
    """The token that a response ends with: what the chat template writes after it, else the end-of-sequence token.

    None where the tokenizer has neither. Gemma's turns end with ``<end_of_turn>``, its texts with ``<eos>``.
    """
    if template != "plain" and tokenizer.chat_template:
        added = tokenizer.added_tokens_decoder.items()
        marks = {*tokenizer.all_special_ids, *(id_ for id_, token in added if token.content.strip())}
        after = _after_answer(tokenizer)
        ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
        written = [int(id_) for id_ in ids if id_ in marks]
        if written:
            return written[0]
    return tokenizer.eos_token_id


def adds_end(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer ends a plain text with its end-of-sequence token."""
    ids = tokenizer(PROBE)["input_ids"]
    return without_end(tokenizer, ids) != ids


def without_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """A text that goes on: without end-of-sequence tokens behind it."""
    n = len(ids)
    while n > 1 and ids[n - 1] == tokenizer.eos_token_id:
        n -= 1
    return ids[:n]


def saying(what: str, work: Callable[[], Any]) -> Any:
    """What ``work`` gives; whatever a tokenizer or a template raises becomes one line about ``what``."""
    try:
        return work()
    except (UserError, RowError):
        raise
    except Exception as error:  # templates are programs, tokenizers raise what their languages do
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{what}: {type(error).__name__}: {reason}") from None


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template asks for today's date; it is given :data:`DATE` at midnight."""
    return "strftime_now" in str(tokenizer.chat_template)


def _write(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """The chat template's text or ids of a conversation, the same on every day."""
    template = CLOCK + tokenizer.get_chat_template() if writes_date(tokenizer) else None
    return tokenizer.apply_chat_template(list(map(dict, messages)), chat_template=template, **options)


def _require_message(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> None:
    """Raise UserError unless the template writes a user's message."""
    remedy = "mend the tokenizer's chat template, or set data.template = plain"
    text = saying(
        f"the chat template fails on a user's message ({remedy})",
        lambda: _write(tokenizer, [ASKED], add_generation_prompt=True, tokenize=False, **arguments),
    )
    if PROBE not in text:
        raise UserError(f"the chat template leaves the user's message out: does it want it in parts? {remedy}")


def _after_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes behind an assistant's answer; empty where it refuses one."""
    try:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
        text = str(_write(tokenizer, messages, tokenize=False))
    except Exception:  # a template without such a turn
        return ""
    return text.rpartition(PROBE)[2] if PROBE in text else ""
