"""A suite's data as prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from specalign.benchmarks.config import DataConfig
from specalign.data import Columns, Conversing, Example, Prompt, encode_prompts
from specalign.data.examples import RowError
from specalign.data.in_turn import continued
from specalign.data.turns import Turns, turns_of
from specalign.records import GenerationRecord, RecordKey, record_key

TURNS: Mapping[str, Literal["in_turn", "first", "last"]] = {"all": "in_turn", "first": "first", "last": "last"}


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
        conversing=Conversing(TURNS[data.turns], data.template_arguments, data.skip_bad_rows),
    )


def turns(data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, keep_end: bool = False) -> Turns:
    """How the tokenizer writes the later turns of conversations."""
    return turns_of(tokenizer, data.template, keep_end=keep_end, arguments=data.template_arguments)


def within(prompts: Sequence[Prompt], context: int | None, max_new_tokens: int) -> list[Prompt]:
    """Without the turns that would not fit a context of so many positions, however long the answers before are."""
    if context is None:
        return list(prompts)
    return [
        replace(prompt, later=kept, n_left_out=prompt.n_left_out + len(prompt.later) - len(kept))
        for prompt in prompts
        for kept in [
            tuple(
                later
                for turn, later in enumerate(prompt.later, start=1)
                if later.n_tokens + (turn + 1) * max_new_tokens <= context
            )
        ]
    ]


def longest(prompt: Prompt, max_new_tokens: int) -> int:
    """Most tokens that the prompt of any of its turns can have."""
    lengths = [later.n_tokens + turn * max_new_tokens for turn, later in enumerate(prompt.later, start=1)]
    return max(len(prompt.input_ids), *lengths) if lengths else len(prompt.input_ids)


def turn_ids(prompt: Prompt, answers: Sequence[str], writing: Turns) -> tuple[int, ...]:
    """The prompt after so many answers. Raises ValueError where the template refuses them."""
    if not answers:
        return prompt.input_ids
    assert prompt.dialogue is not None
    dialogue = prompt.dialogue
    for answer, later in zip(answers, prompt.later, strict=False):
        dialogue = continued(dialogue, answer, later.messages)
    try:
        return tuple(dialogue.ids(writing))
    except RowError as error:
        raise ValueError(f"turn {len(answers) + 1}: {error}") from None


class Talks:
    """What was decoded so far, by which the prompts of later turns are found."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        writing: Turns,
        records: Iterable[GenerationRecord] = (),
    ) -> None:
        self.prompts = {prompt.id: prompt for prompt in prompts}
        self.tokenizer, self.writing = tokenizer, writing
        self.outputs = {record_key(record): record.token_ids for record in records if record.status == "ok"}

    def add(self, record: GenerationRecord) -> None:
        """Let later turns see a good generation."""
        if record.status == "ok":
            self.outputs[record_key(record)] = record.token_ids

    def input_ids(self, key: RecordKey) -> tuple[int, ...]:
        """The prompt of a generation. Raises ValueError where an earlier turn has failed."""
        *conversation, turn = key
        earlier = [(*conversation, before) for before in range(turn)]
        missing = [place for place, each in enumerate(earlier, start=1) if each not in self.outputs]
        if missing:
            raise ValueError(f"turn {missing[0]} of its conversation failed")
        answers = [self.outputs[each] for each in earlier]  # type: ignore[index]
        texts = [str(self.tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]
        return turn_ids(self.prompts[key[0]], texts, self.writing)
