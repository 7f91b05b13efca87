"""A suffix automaton over a growing text: its longest suffix that occurred before, and what followed it most often.

Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text", built token by token. A state stands
for the suffixes that ended at the same places so far; the link of the whole text's state is therefore the longest
suffix that also ended earlier, and its transitions are the tokens that followed it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

COUNTED = 64
"""Contexts whose counts an appended token raises, the longest first. Only where a text repeats itself over and over has
it more (a run of n equal tokens has n): there the counts of the shorter contexts, which no match needs, stop."""

ROOT = 0
NONE = -1
"""No state, and no token."""


@dataclass(frozen=True)
class Match:
    """The longest suffix of a text that occurred before."""

    state: int
    length: int
    """Tokens; 0: the text's last token is new."""


class SuffixIndex:
    """Counts what followed each context of a text.

    Appending a token takes amortised O(1) steps, whatever the length of the text (at most ``COUNTED`` counts are
    raised besides), and so do :attr:`match` and each token of :meth:`continuation`. Memory is at most two states a
    token.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length, self._seen, self._likeliest = [NONE], [0], [0], [NONE]
        self._last = ROOT
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Append one token."""
        before, whole = self._last, self._state({}, self._length[self._last] + 1)
        state = before
        while state != NONE and token not in self._next[state]:
            self._next[state][token] = whole
            state = self._link[state]
        self._link[whole] = ROOT if state == NONE else self._split(state, token)
        self._last = whole
        self._count(before, token)

    @property
    def match(self) -> Match:
        """The longest suffix of the text that also ended earlier."""
        state = max(self._link[self._last], ROOT)
        return Match(state, self._length[state])

    def advance(self, match: Match, token: int) -> Match:
        """The longest suffix of another text that occurs in this one, once ``token`` was appended to that text.

        Starts from ``Match(0, 0)``. Amortised O(1) a token.
        """
        state, length = match.state, match.length
        while state != ROOT and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state]
        if token not in self._next[state]:
            return Match(ROOT, 0)
        return Match(self._next[state][token], length + 1)

    def continuation(self, match: Match) -> Iterator[tuple[int, int]]:
        """(token, tokens of context that it follows), one after the other: each what followed most often.

        Of tokens that followed equally often the latest is taken. Where the text ends, the longest shorter context goes
        on: a text that repeats itself goes on repeating.
        """
        state, length = match.state, match.length
        while True:
            while state != ROOT and self._likeliest[state] == NONE:
                state = self._link[state]
                length = self._length[state]
            if state == ROOT:
                return
            token = self._likeliest[state]
            yield token, length
            state, length = self._next[state][token], length + 1

    def _state(self, following: dict[int, int], length: int) -> int:
        self._next.append(following)
        self._link.append(NONE)
        self._length.append(length)
        self._seen.append(0)
        self._likeliest.append(NONE)
        return len(self._next) - 1

    def _split(self, state: int, token: int) -> int:
        """The state of exactly ``state``'s longest suffix and ``token``, cut off from a longer one where needed."""
        longer = self._next[state][token]
        if self._length[longer] == self._length[state] + 1:
            return longer
        clone = self._state(dict(self._next[longer]), self._length[state] + 1)
        self._seen[clone], self._likeliest[clone] = self._seen[longer], self._likeliest[longer]
        self._link[clone], self._link[longer] = self._link[longer], clone
        while state != NONE and self._next[state].get(token) == longer:
            self._next[state][token] = clone
            state = self._link[state]
        return clone

    def _count(self, before: int, token: int) -> None:
        """One more occurrence of every suffix of the text, and of ``token`` after every suffix of what was before."""
        following, link, seen, likeliest = self._next, self._link, self._seen, self._likeliest
        state, left = self._last, COUNTED
        while state > ROOT and left:
            seen[state] += 1
            state, left = link[state], left - 1
        state, left = before, COUNTED
        while state > ROOT and left:
            best = likeliest[state]
            if best == NONE or seen[following[state][token]] >= seen[following[state][best]]:
                likeliest[state] = token
            state, left = link[state], left - 1
