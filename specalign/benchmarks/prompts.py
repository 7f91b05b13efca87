"""A suite's data as prompts."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from specalign.benchmarks.config import DataConfig
from specalign.data import Columns, Conversing, Example, Prompt, encode_prompts


def columns(data: DataConfig) -> Columns:
    """The columns that the suite names."""
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
        conversing=Conversing(arguments=data.template_arguments, skip_bad_rows=data.skip_bad_rows),
    )
