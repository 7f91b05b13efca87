"""--sweep optimiser.lr=1e-4,3e-4 objective.hyper.anchor=1.2,2: an arm for each combination of values."""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

from specalign.errors import UserError

ELSEWHERE = {
    "method": "--compare METHOD METHOD trains several methods",
    "seed": "--seeds 0 1 trains with several seeds",
    "output": "each arm has a folder in the output by itself",
    **dict.fromkeys(("recipe", "compare", "arms", "seeds", "sweep", "overwrite"), "it is the whole command's"),
}
"""Option that is no arm's -> what to do."""
MOST = 1000
"""Arms of one command."""

Value = tuple[str, Any]
"""(As it is written, what it means.)"""


def arms_of(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name of each arm -> its options, by dotted names; one nameless arm without options where nothing is swept.

    The name has each option's last part and value, ``lr=1e-4+anchor=2``; the whole option where two end alike.
    """
    swept = dict(map(_parsed, words))
    if len(swept) < len(words):
        twice = Counter(word.partition("=")[0] for word in words).most_common(1)[0][0]
        raise UserError(f"--sweep has {twice} twice: give all its values at once")
    if (n_arms := math.prod(map(len, swept.values()))) > MOST:
        raise UserError(f"--sweep would make {n_arms:,} arms; at most {MOST:,} can be asked for at once")
    ends = Counter(key.rpartition(".")[2] for key in swept)
    short = {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in swept}
    found: dict[str, dict[str, Any]] = {}
    for chosen in product(*swept.values()):
        named = zip(swept, chosen, strict=True)
        name = "+".join(f"{short[key]}={_letters(text)}" for key, (text, _) in named)
        if name in found:
            raise UserError(f"--sweep: two arms would be called {name}")
        found[name] = {key: value for key, (_, value) in zip(swept, chosen, strict=True)}
    return found


def _parsed(word: str) -> tuple[str, list[Value]]:
    key, equals, text = word.partition("=")
    key = key.strip().replace("-", "_")
    if not (key and equals and text.strip()):
        raise UserError(f"--sweep takes OPTION=VALUE,VALUE,..., such as optimiser.lr=1e-4,3e-4, not {word!r}")
    if key in ELSEWHERE:
        raise UserError(f"--sweep {key}: {ELSEWHERE[key]}")
    return key, _values(text)


def _values(text: str) -> list[Value]:
    """The values between commas: as TOML writes them, else words."""
    words = [word.strip() for word in text.split(",")]
    whole = _toml(text)
    if whole is None:
        return [(word, value[0] if (value := _toml(word)) else word) for word in words]
    return list(zip(words, whole, strict=True)) if len(words) == len(whole) else [(str(v), v) for v in whole]


def _toml(text: str) -> list[Any] | None:
    """The items of a TOML array; None where it is none, or empty."""
    try:
        return tomllib.loads(f"values = [{text}]")["values"] or None
    except (ValueError, RecursionError):
        return None


def _letters(text: str) -> str:
    """As a folder's name can have it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_")
