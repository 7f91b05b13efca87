"""From examples to token ids: instruction, chat template, truncation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerBase

from specalign.data.cutting import cut_before
from specalign.data.examples import Example, lone_surrogate, with_distinct_ids
from specalign.data.turns import Template, Turns, end_of_turn, saying, turns_of
from specalign.errors import UserError
from specalign.templates import PLACE


@dataclass(frozen=True)
class Prompt:
    """One example as token ids."""

    id: str
    input_ids: tuple[int, ...]
    """The whole prompt, template included."""
    reference_ids: tuple[int, ...]
    """The reference as a response, with the token that ends a turn; empty without a reference."""
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
    keep_end: bool = False,
) -> list[Prompt]:
    """Tokenise ``examples``; only the document is cut where the prompt exceeds ``max_prompt_tokens``.

    ``prompt`` is the user's message with ``{document}`` in it. ``chat`` wraps it in the tokenizer's chat
    template, ``plain`` adds the special tokens of plain text alone, ``auto`` is chat where there is a
    template. A plain prompt goes on: an end-of-sequence token that the tokenizer adds is left off, unless
    ``keep_end`` (for encoders). A document is cut after a sentence or a word where one ends near the limit, and
    between characters in any case. A repeated id gets a number
    behind it. Raises UserError for a prompt without its place, a missing or failing chat
    template, a limit that leaves no room for a document, and a row that the tokenizer refuses, by its id.
    """
    if PLACE not in prompt:
        raise UserError(f"the prompt has no {PLACE}: {prompt!r}")
    if half := lone_surrogate(prompt):
        raise UserError(f"the prompt has half a character (a lone surrogate, {half})")
    turns = turns_of(tokenizer, template, keep_end=keep_end)
    end = end_of_turn(tokenizer, template)
    return [
        saying(
            f"row {example.id!r} is refused", partial(_encode, example, turns, end, prompt, max_prompt_tokens)
        )
        for example in with_distinct_ids(examples)
    ]


def _encode(example: Example, turns: Turns, end: int | None, prompt: str, limit: int) -> Prompt:
    def ids(document: str) -> list[int]:
        return turns.prompt_ids(prompt.replace(PLACE, document))

    document, encoded, n_truncated = example.document, ids(example.document), 0
    if not encoded:
        raise UserError(
            f"the prompt of {example.id!r} has no tokens: {type(turns.tokenizer).__name__} does not fit the files in "
            "the model's folder; save the tokenizer again from where the model came from"
        )
    if len(encoded) > limit:
        starts = _token_starts(turns.tokenizer, document)
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


def _token_starts(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The character that each token of a text begins in; evenly spread where the tokenizer does not tell."""
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [begin for begin, _ in encoded["offset_mapping"]]
    n = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return [place * len(text) // n for place in range(n)]
