"""The order of a run's generations, and the seed of each: functions of its config alone, which a reader can redo."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

P = TypeVar("P")
What = tuple[str, float, int, int]
"""(method, temperature, gamma, repeat)."""


def shuffled(
    prompts: Sequence[P],
    gammas: Mapping[str, Sequence[int]],
    temperatures: Sequence[float],
    repeats: int,
    seed: int,
) -> list[tuple[P, What]]:
    """Every prompt by every method (with its draft lengths) at every temperature, in one seeded random order."""
    plan = [
        (prompt, (method, temperature, gamma, repeat))
        for prompt in prompts
        for method, lengths in gammas.items()
        for temperature in temperatures
        for gamma in lengths
        for repeat in range(repeats)
    ]
    random.Random(seed).shuffle(plan)
    return plan


def by_server(plan: Sequence[tuple[P, What]], methods: Sequence[str]) -> list[tuple[P, What]]:
    """The order of a serving engine: one server (method and draft length) after the other, each in the plan's order."""
    place = {method: index for index, method in enumerate(methods)}
    return sorted(plan, key=lambda entry: (place[entry[1][0]], entry[1][2]))


def in_turns(plan: Sequence[tuple[P, What]], n_turns: Callable[[P], int]) -> list[tuple[P, What, int]]:
    """Each entry with its turns, 0 to the prompt's last one, one after the other."""
    return [(prompt, what, turn) for prompt, what in plan for turn in range(n_turns(prompt))]


def generation_seed(seed: int, prompt_id: str, what: What, turn: int = 0) -> int:
    """Of one generation: by what it is, not by its place."""
    later = f"|{turn}" if turn else ""
    return random.Random(f"{seed}|{prompt_id}|{what}{later}").getrandbits(62)
