"""Text that others wrote, made fit for a terminal, a report or a table: nothing in it acts, all of it shows."""

from __future__ import annotations

import re

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._+=-]{0,63}$"
"""Names of drafters, arms and methods: they become names of folders, rows and arguments."""
NAME_RULE = "1 to 64 letters, digits and . _ - + =, with a letter, a digit or _ first"
ACTING = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"  # controls but tab and newline, ESC among them
    "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"  # directions
    "\\u180e\\u200b\\u2060-\\u2065\\u206a-\\u206f\\ufeff\\ufff9-\\ufffb\\U000e0000-\\U000e0fff"  # invisible
    "\\u2028\\u2029\\ud800-\\udfff]"  # separators of lines, halves of pairs
)
"""What is no character to read. Scripts and emoji need U+200C and U+200D: these stay."""


def plain(text: str) -> str:
    r"""``text`` with escapes like ``\x1b`` in the place of characters that act; newlines and tabs stay."""
    return ACTING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """The same, without newlines and tabs."""
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")
