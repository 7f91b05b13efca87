"""Documents are cut between characters, after a sentence or a word where one ends near the limit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specalign.data import Example, encode_prompts
from specalign.data.cutting import cut_before, searched

REPLACEMENT = "\ufffd"
TEXTS = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters=REPLACEMENT), min_size=12, max_size=80
).filter(lambda text: bool(text.strip()))


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("One two. Three four", 11, "One two."),
        ("One two three four", 11, "One two"),
        ("One two three four", 13, "One two three"),
        ("abcdefghijkl", 5, "abcde"),
        ("猫坐在垫子上。它很高兴", 8, "猫坐在垫子上。"),
        ("猫坐在垫子上它很高兴", 8, "猫坐在垫子上它很"),
        ("abcde\u0301f", 5, "abcd"),
        ("abc\U0001f469\u200d\U0001f4bbd", 4, "abc"),
        ("abc\U0001f44d\U0001f3fdd", 4, "abc"),
        ("short", 9, "short"),
    ],
)
def test_cuts(text: str, limit: int, kept: str) -> None:
    assert text[: cut_before(text, limit)] == kept


@given(TEXTS, st.integers(0, 80))
def test_no_more_than_the_searched_share_is_given_up_but_for_joined_characters(text: str, limit: int) -> None:
    place = cut_before(text, limit)
    assert 0 <= place <= min(limit, len(text))
    if text.isascii():
        assert place >= min(limit - searched(limit), len(text))


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerFast:
    """Every byte of UTF-8 a token: most cuts between tokens fall inside of a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: id_ for id_, letter in enumerate(["</s>", *alphabet])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(24, 60))
def test_no_prompt_holds_half_a_character(bytewise: PreTrainedTokenizerFast, text: str, limit: int) -> None:
    text = "a " + text  # something fits
    (prompt,) = encode_prompts([Example("1", text)], bytewise, prompt="{document}|", max_prompt_tokens=limit)
    read = str(bytewise.decode(list(prompt.input_ids)))
    assert len(prompt.input_ids) <= limit
    assert REPLACEMENT not in read
    assert text.startswith(read.removesuffix("|"))
    whole = len(bytewise(text)["input_ids"])
    assert prompt.n_truncated == whole - (len(prompt.input_ids) - 1)
    assert (prompt.n_truncated > 0) == (whole + 1 > limit)
