"""From examples to token ids: instruction, chat template, truncation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from specalign.data.examples import Example
from specalign.errors import UserError, unknown
from specalign.templates import PLACE

Template = Literal["auto", "chat", "plain"]


@dataclass(frozen=True)
class Prompt:
    """One example as token ids."""

    id: str
    input_ids: tuple[int, ...]
    """The whole prompt, template included."""
    reference_ids: tuple[int, ...]
    """The reference as a response, end-of-sequence token included; empty without a reference."""
    reference: str = ""
    category: str = ""
    n_truncated: int = 0
    """Document tokens that were cut off to fit."""


def encode_prompts(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str,
    template: Template = "auto",
    max_prompt_tokens: int,
) -> list[Prompt]:
    """Tokenise ``examples``; only the document is cut where the prompt exceeds ``max_prompt_tokens``.

    ``prompt`` is the user's message with ``{document}`` in it. ``chat`` wraps it in the tokenizer's chat
    template, ``plain`` adds the special tokens of plain text alone, ``auto`` is chat where there is a
    template. Raises UserError for a prompt without its place, a missing chat template, or a limit that
    leaves no room for a document.
    """
    if PLACE not in prompt:
        raise UserError(f"the prompt has no {PLACE}: {prompt!r}")
    wrap = _wrap(tokenizer, template)
    return [_encode(example, tokenizer, wrap, prompt, max_prompt_tokens) for example in examples]


def _wrap(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    if template == "auto":
        template = "chat" if tokenizer.chat_template else "plain"
    if template not in ("chat", "plain"):
        raise unknown("prompt template", template, ("auto", "chat", "plain"))
    if template == "chat" and not tokenizer.chat_template:
        raise UserError('the tokenizer has no chat template; use template = "plain"')
    return template


def _encode(
    example: Example, tokenizer: PreTrainedTokenizerBase, template: str, prompt: str, limit: int
) -> Prompt:
    def ids(document: str) -> list[int]:
        text = prompt.replace(PLACE, document)
        if template == "plain":
            return list(tokenizer(text)["input_ids"])
        message = [{"role": "user", "content": text}]
        return list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))

    document = example.document
    encoded, n_truncated = ids(document), 0
    if not encoded:
        raise UserError(
            f"the prompt of {example.id!r} has no tokens: {type(tokenizer).__name__} does not fit the files in the "
            "model's folder; save the tokenizer again from where the model came from"
        )
    if len(encoded) > limit:
        tokens = tokenizer(document, add_special_tokens=False)["input_ids"]
        keep = len(tokens) - (len(encoded) - limit)
        while keep > 0 and len(encoded) > limit:  # re-tokenised text can be a token longer than its parts
            document = str(tokenizer.decode(tokens[:keep]))
            encoded, n_truncated = ids(document), len(tokens) - keep
            keep -= max(1, len(encoded) - limit)
        if len(encoded) > limit:
            raise UserError(f"max_prompt_tokens = {limit} leaves no room for the document of {example.id!r}")
    reference = tokenizer(example.reference, add_special_tokens=False)["input_ids"] if example.reference else []
    end = [tokenizer.eos_token_id] if reference and tokenizer.eos_token_id is not None else []
    return Prompt(
        example.id, tuple(encoded), (*reference, *end), example.reference, example.category, n_truncated
    )
