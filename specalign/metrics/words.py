"""The words of a text in any script, for ROUGE: as rouge-score's own for ASCII text, which it alone can read."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)
"""Scripts without spaces between words: each character is a word."""


@dataclass(frozen=True)
class Words:
    """A tokenizer for rouge-score's scorer."""

    stem: bool
    """Porter's stemmer, which knows English."""

    def tokenize(self, text: str) -> list[str]:
        r"""Runs of ``\w`` without underscores, in lower case; characters of unspaced scripts and symbols by
        themselves, accents with their letters.
        """
        ascii_words = _rouge_score(self.stem).tokenize
        if text.isascii():
            return ascii_words(text)
        found = _words(unicodedata.normalize("NFC", text.lower()))
        return [part for word in found for part in (ascii_words(word) if word.isascii() else [word])]


def is_english(text: str) -> bool:
    """As far as letters tell: whether all are ASCII."""
    return all(letter.isascii() for letter in text if letter.isalpha())


def _words(text: str) -> Iterator[str]:
    word = ""
    for character in text:
        mark = unicodedata.category(character).startswith("M")
        if word and (mark or (character.isalnum() and not _alone(character) and not _alone(word[0]))):
            word += character
            continue
        if word:
            yield word
        word = character if character.isalnum() or _alone(character) else ""
    if word:
        yield word


def _alone(character: str) -> bool:
    """Whether it is a word by itself: a symbol, or of a script without spaces."""
    code = ord(character)
    return unicodedata.category(character) == "So" or any(first <= code <= last for first, last in UNSPACED)


@functools.cache
def _rouge_score(stem: bool) -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=stem)
