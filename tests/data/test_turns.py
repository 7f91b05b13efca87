"""Prompts go on, responses end as the template ends turns, and what a tokenizer refuses is one line with the row."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from specalign.data import Example, encode_prompts
from specalign.data.turns import adds_end, end_of_turn, turns_of, writes_date
from specalign.errors import UserError

GEMMA = (
    "{% for m in messages %}<start> {{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<start> model {% endif %}"
)
CHATML = "{% for m in messages %}<start> {{ m['content'] }} </s> {% endfor %}"
ENDLESS = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
USERS_ONLY = "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('no') }}{% endif %}"
USERS_ONLY += "{{ m['content'] }}{% endfor %}"


def words(template: str | None = None, *, ends: bool = False) -> Any:
    names = ["?", "<s>", "</s>", "<start>", "<end>", *"abc", "model", "user"]
    raw = Tokenizer(models.WordLevel({name: id_ for id_, name in enumerate(names)}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="?",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<start>", "<end>"],
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "end"),
    [(GEMMA, "<end>"), (CHATML, "</s>"), (ENDLESS, "</s>"), (USERS_ONLY, "</s>"), (None, "</s>")],
)
def test_a_reference_ends_with_what_the_template_writes_after_an_answer(template: str | None, end: str) -> None:
    tokenizer = words(template)
    (prompt,) = encode_prompts([Example("1", "a", "b c")], tokenizer, prompt="{document}", max_prompt_tokens=9)
    assert tokenizer.convert_ids_to_tokens(prompt.reference_ids) == ["b", "c", end]
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(end)
    assert end_of_turn(tokenizer, "plain") == tokenizer.eos_token_id


def test_an_end_that_the_tokenizer_adds_is_left_off_a_prompt_but_not_for_an_encoder() -> None:
    tokenizer = words(ends=True)

    def tokens(**options: Any) -> list[str]:
        (prompt,) = encode_prompts(
            [Example("1", "a b")], tokenizer, prompt="{document}", max_prompt_tokens=9, **options
        )
        return tokenizer.convert_ids_to_tokens(prompt.input_ids)

    assert tokens() == ["<s>", "a", "b"]
    assert tokens(keep_end=True) == ["<s>", "a", "b", "</s>"]
    assert adds_end(tokenizer)
    assert not adds_end(words())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('A system message is required') }}", "A system message is required"),
        ("{{ messages[0]['content'].nope() }}", "nope"),
        ("{% for m in messages %}{{ m['content'] }}", "TemplateSyntaxError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        (
            "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}",
            "in parts",
        ),
        ("fixed", "leaves the user's message out"),
    ],
)
def test_a_template_that_fails_or_loses_the_message_is_refused(template: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        encode_prompts([Example("1", "a")], words(template), prompt="{document}", max_prompt_tokens=9)
    assert "data.template = plain" in str(caught.value)
    encode_prompts(
        [Example("1", "a")], words(template), prompt="{document}", template="plain", max_prompt_tokens=9
    )


def test_a_row_that_the_tokenizer_refuses_is_named() -> None:
    class Picky:
        """A tokenizer that raises on one text, as those written in other languages do."""

        def __init__(self) -> None:
            self.own = words()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.own, name)

        def __call__(self, text: str, **options: Any) -> Any:
            if "b" in text:
                raise TypeError("TextEncodeInput must be Union[...]\nmore")
            return self.own(text, **options)

    picky: Any = Picky()
    rows = [Example("first", "a"), Example("second", "b")]
    with pytest.raises(UserError, match=r"^row 'second' is refused: TypeError: TextEncodeInput must be Union"):
        encode_prompts(rows, picky, prompt="{document}", max_prompt_tokens=9)


def test_a_template_with_a_clock_writes_the_same_on_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = words("\n{{ strftime_now('%d %b %Y %H:%M:%S') }} {{ messages[0]['content'] }}")
    assert writes_date(tokenizer)
    assert not writes_date(words(GEMMA))
    seen: list[str] = []

    def read(_self: object, text: str, **_: object) -> dict[str, list[int]]:
        seen.append(text)
        return {"input_ids": [1]}

    monkeypatch.setattr(type(tokenizer), "__call__", read)
    turns_of(tokenizer, "chat").prompt_ids("a")
    assert seen == ["\n01 Jan 2025 00:00:00 a"]


def test_half_a_character_in_the_prompt_is_named() -> None:
    with pytest.raises(UserError, match=r"the prompt has half a character \(a lone surrogate, \\ud83d\)"):
        encode_prompts([Example("1", "a")], words(), prompt="\ud83d {document}", max_prompt_tokens=9)
