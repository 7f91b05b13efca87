"""What other draft lengths would give, and what hardware would give that one does not have yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from specalign.analysis.cost_model import (
    StepCosts,
    break_even_alpha,
    break_even_c,
    expected_tokens,
    speedup,
)

CallSeconds = Callable[[int], float]
"""Tokens of a call -> its seconds."""


@dataclass(frozen=True)
class Outlook:
    """What one draft length would give."""

    gamma: int
    speedup: float
    break_even_alpha: float | None
    break_even_c: float | None


@dataclass(frozen=True)
class Drafting:
    """How a drafter does, by number of tokens."""

    tokens: Callable[[int], float]
    """Tokens that a step emits which drafted so many."""
    draft_s: CallSeconds
    verify_s: CallSeconds
    lengths: Sequence[int]
    """Tokens that it drafted, step by step, where it might draft gamma_max: prompt lookup often finds fewer."""


def outlooks(drafting: Drafting, costs: StepCosts, gamma_max: int) -> list[Outlook]:
    """Predicted speed-up at gamma = 1..gamma_max; the plain step and the overhead are those of ``costs``."""
    found = []
    for gamma in range(1, gamma_max + 1):
        lengths = [min(gamma, n) for n in drafting.lengths]
        scaled = StepCosts(
            gamma,
            costs.target_s,
            costs.plain_overhead_s,
            mean(drafting.draft_s(n) if n else 0.0 for n in lengths),
            mean(drafting.verify_s(n + 1) for n in lengths),
            costs.overhead_s,
        )
        n_tokens = mean(map(drafting.tokens, lengths))
        fast = speedup(n_tokens, scaled)
        found.append(Outlook(gamma, fast, break_even_alpha(scaled), break_even_c(n_tokens, scaled)))
    return found


def best(found: Sequence[Outlook]) -> Outlook:
    """The fastest of them."""
    return max(found, key=lambda outlook: outlook.speedup)


def plan(costs: StepCosts, alpha: float, gamma_max: int) -> list[Outlook]:
    """Predicted speed-up at gamma = 1..gamma_max from times measured elsewhere.

    Acceptance is i.i.d. at ``alpha``; between and beyond T_target(1) and the T_target(gamma + 1) of ``costs``
    verification grows along a straight line; drafting is proportional to gamma.
    """
    growth = (costs.verify_s - costs.target_s) / costs.gamma
    drafting = Drafting(
        tokens=lambda n: expected_tokens(alpha, n),
        draft_s=lambda n: costs.draft_s / costs.gamma * n,
        verify_s=lambda positions: costs.target_s + growth * (positions - 1),
        lengths=[gamma_max],
    )
    return outlooks(drafting, costs, gamma_max)


def plan_lines(found: Sequence[Outlook], alpha: float) -> list[str]:
    """The outlooks as a table and one sentence of advice."""
    lines = ["gamma  speed-up  break-even alpha  break-even c"]
    for outlook in found:
        needed = "never pays" if outlook.break_even_alpha is None else f"{outlook.break_even_alpha:.2f}"
        cheapest = "none" if outlook.break_even_c is None else f"{outlook.break_even_c:.3f}"
        lines.append(f"{outlook.gamma:5}  {outlook.speedup:7.2f}x  {needed:>16}  {cheapest:>12}")
    choice = best(found)
    if choice.speedup <= 1:
        return [
            *lines,
            f"At alpha {alpha:g} no gamma pays; the best, {choice.gamma}, gives {choice.speedup:.2f}x.",
        ]
    return [*lines, f"At alpha {alpha:g} use gamma = {choice.gamma}: {choice.speedup:.2f}x (an estimate)."]
