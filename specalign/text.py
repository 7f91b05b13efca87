"""Text that others wrote, made fit for a terminal, a report or a table: nothing in it acts, all of it shows."""

from __future__ import annotations

import unicodedata

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._+=-]{0,63}$"
"""Names of drafters, arms and methods: they become names of folders, rows and arguments."""
NAME_RULE = "1 to 64 letters, digits and . _ - + =, with a letter, a digit or _ first"
JOINERS = "\u200c\u200d\u00ad"
"""Format characters that ordinary text needs: scripts that join letters, emoji, and the soft hyphen."""
ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of what is no character to read: controls, directions, halves of pairs, separators of lines."""


def plain(text: str) -> str:
    r"""``text`` with escapes like ``\x1b`` in the place of characters that act; newlines and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def one_line(text: str) -> str:
    """The same, without newlines and tabs."""
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")


def _shown(character: str) -> str:
    if character in "\n\t" or character in JOINERS or unicodedata.category(character) not in ACTING:
        return character
    return character.encode("unicode_escape").decode("ascii")
