"""A recipe's data as prompts."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from specalign.data import Columns, Conversing, Example, Prompt, encode_prompts
from specalign.data.turns import Turns, turns_of
from specalign.training.config import DataConfig


def columns(data: DataConfig) -> Columns:
    """The columns that the recipe names."""
    return Columns(data.document, data.reference, data.messages)


def encoded(
    data: DataConfig, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, keep_end: bool = False
) -> list[Prompt]:
    """The examples as token ids. Raises UserError for data that do not fit."""
    return encode_prompts(
        examples,
        tokenizer,
        prompt=data.prompt,
        template=data.template,
        max_prompt_tokens=data.max_prompt_tokens,
        keep_end=keep_end,
        conversing=Conversing(data.turns, data.template_arguments, data.skip_bad_rows),
    )


def turns(data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Turns:
    """How the tokenizer writes the later turns of conversations."""
    return turns_of(tokenizer, data.template, arguments=data.template_arguments)
