"""Where a text may be cut: after a sentence, else after a word, never inside of a character."""

from __future__ import annotations

import re
import unicodedata

from transformers import PreTrainedTokenizerBase

SHARE, LETTERS = 0.2, 24
"""What may be given up for an end at a sentence or a word: a fifth, or a word's letters (of at most half)."""
SENTENCE = re.compile(r"[.!?\u2026][\"')\]\u201d\u2019]*(?=\s)|[\u3002\uff01\uff1f\u0964]|\n")
WORD = re.compile(r"(?<=\S)(?=\s)")
JOINER = "\u200d"
MODIFIERS = range(0x1F3FB, 0x1F400)
"""Skin tones."""


def cut_before(text: str, limit: int) -> int:
    """Characters to keep, at most ``limit``: up to the last end of a sentence, else of a word, near the limit.

    Accents, joined emoji and the like stay with what they belong to.
    """
    if limit >= len(text):
        return len(text)
    first = limit - searched(limit)
    window = text[first : limit + 1]  # the character behind the cut tells whether a word ends there
    for ends in (SENTENCE, WORD):
        found = [first + match.end() for match in ends.finditer(window) if first + match.end() <= limit]
        if found and found[-1] > 0:
            return found[-1]
    while limit > 0 and _continues(text, limit):
        limit -= 1
    return limit


def searched(limit: int) -> int:
    """Characters before ``limit`` among which an end is looked for."""
    return max(int(SHARE * limit), min(LETTERS, limit // 2))


def token_starts(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The character that each token of a text begins in; evenly spread where the tokenizer does not tell."""
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [begin for begin, _ in encoded["offset_mapping"]]
    n = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return [place * len(text) // n for place in range(n)]


def _continues(text: str, place: int) -> bool:
    """Whether the character at ``place`` belongs to the one before it."""
    here = text[place]
    return (
        unicodedata.category(here).startswith("M")
        or here == JOINER
        or ord(here) in MODIFIERS
        or text[place - 1] == JOINER
    )
