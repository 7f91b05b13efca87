"""Words of every script; rouge-score's own words, bit by bit, for ASCII text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from specalign.metrics.rouge import mean_rouge
from specalign.metrics.words import Words, is_english

ASCII = st.text(st.characters(max_codepoint=127), max_size=60)
SOME = st.text(min_size=1, max_size=40).filter(lambda text: any(letter.isalnum() for letter in text))


@given(ASCII, st.booleans())
def test_ascii_text_has_the_words_of_rouge_score(text: str, stem: bool) -> None:
    """Also where it stands beside other scripts."""
    expected = DefaultTokenizer(use_stemmer=stem).tokenize(text)
    assert Words(stem).tokenize(text) == expected
    assert Words(stem).tokenize(f"{text} 猫") == [*expected, "猫"]
    assert is_english(text)


@given(st.lists(st.tuples(ASCII, ASCII), min_size=1, max_size=5))
def test_ascii_texts_score_as_before_bit_by_bit(pairs: list[tuple[str, str]]) -> None:
    outputs, references = zip(*pairs, strict=True)
    names = [str(number) for number in range(len(pairs))]
    ours, before = (mean_rouge(outputs, references, names, words=words) for words in ("unicode", "ascii"))
    if ours is None or before is None:
        assert ours == before
        return
    assert (ours.words, before.words) == ("unicode", "ascii")
    for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert getattr(ours, kind) == getattr(before, kind)


@given(SOME)
def test_a_text_equals_itself_in_any_script(text: str) -> None:
    found = mean_rouge([text], [text], ["a"])
    assert found
    assert found.rouge1.value == found.rougeL.value == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Über die Straße", ["über", "die", "straße"]),
        ("Кошка_сидит 2 дня", ["кошка", "сидит", "2", "дня"]),
        ("猫坐在 ABC 上。", ["猫", "坐", "在", "abc", "上"]),
        ("東京タワー", ["東", "京", "タ", "ワ", "ー"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("ok🙂🙂", ["ok", "🙂", "🙂"]),
        ("cafe\u0301", ["café"]),
        ("“don’t”", ["don", "t"]),
    ],
)
def test_words_of_many_scripts(text: str, words: list[str]) -> None:
    assert Words(stem=False).tokenize(text) == words


def test_only_english_is_stemmed() -> None:
    english = mean_rouge(["the cats were running"], ["the cat was run"], ["a"])
    german = mean_rouge(["die Katzen laufen über"], ["die Katz lauf über"], ["a"])
    assert english
    assert german
    assert english.rouge1.value == pytest.approx(3 / 4)
    assert german.rouge1.value == pytest.approx(2 / 4)
