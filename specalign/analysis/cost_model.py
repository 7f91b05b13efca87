"""What speculative decoding costs and gains: pure arithmetic on measured times.

Seconds of one plain step: T_target(1) and its overhead. Of one speculative step: gamma T_draft(1),
T_target(gamma + 1), overhead. Notation of Leviathan et al. 2023 (arXiv:2211.17192).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.optimize import brentq


@dataclass(frozen=True)
class StepCosts:
    """Median seconds, measured in one run."""

    gamma: int
    target_s: float
    """T_target(1): one plain target call."""
    plain_overhead_s: float
    """Sampling and bookkeeping of one plain step."""
    draft_s: float
    """gamma T_draft(1): all drafting of one step."""
    verify_s: float
    """T_target(gamma + 1): one verifying target call."""
    overhead_s: float
    """Sampling, the rule and bookkeeping of one speculative step."""

    @property
    def c(self) -> float:
        """T_draft(1) / T_target(1)."""
        return self.draft_s / self.gamma / self.target_s

    @property
    def verify_ratio(self) -> float:
        """T_target(gamma + 1) / T_target(1); 1 where verification is free."""
        return self.verify_s / self.target_s

    @property
    def price(self) -> float:
        """Seconds of a speculative step over those of a plain one: the tokens that it must emit to pay."""
        speculative = self.draft_s + self.verify_s + self.overhead_s
        return speculative / (self.target_s + self.plain_overhead_s)


def expected_tokens(alpha: float, gamma: int) -> float:
    """Tokens per step for i.i.d. acceptance: (1 - alpha^(gamma + 1)) / (1 - alpha), in 1..gamma + 1 (equation 1)."""
    return sum(alpha**i for i in range(gamma + 1))


def tokens_from_survival(survival: Sequence[float | None]) -> float:
    """Tokens per step from the shares of drafts whose first i tokens were accepted: 1 + their sum."""
    return 1 + sum(share or 0.0 for share in survival)


def speedup(tokens_per_step: float, costs: StepCosts) -> float:
    """Decode speed-up over plain decoding of a step that emits ``tokens_per_step`` tokens."""
    return tokens_per_step / costs.price


def predicted_speedup(
    survival: Sequence[float | None], steps: Mapping[int, tuple[int, float]], plain_step_s: float
) -> float:
    """Decode speed-up that the survival curve and the median step times give.

    ``steps``: drafted tokens n -> (number of steps that drafted n, median seconds of one). A step that drafts n
    tokens is expected to emit 1 + S_1 + ... + S_n; drafts are shorter than gamma at the end of an output and
    where prompt lookup finds less. Tokens per second over the plain target's 1 / ``plain_step_s``.
    """
    tokens = sum(count * tokens_from_survival(survival[:n]) for n, (count, _) in steps.items())
    seconds = sum(count * step_s for count, step_s in steps.values())
    return tokens / seconds * plain_step_s


def break_even_alpha(costs: StepCosts) -> float | None:
    """The i.i.d. acceptance rate at which speculative decoding is as fast as plain decoding.

    0 where it is never slower; None where even full acceptance does not pay.
    """
    if costs.price <= 1:
        return 0.0
    if costs.price > costs.gamma + 1:
        return None
    return float(brentq(lambda alpha: expected_tokens(alpha, costs.gamma) - costs.price, 0.0, 1.0))


def leviathan_speedup(alpha: float, gamma: int, c: float) -> float:
    """(1 - alpha^(gamma + 1)) / ((1 - alpha) (gamma c + 1)): verification free, no overhead (theorem 3.8)."""
    return expected_tokens(alpha, gamma) / (gamma * c + 1)


def break_even_c(tokens_per_step: float, costs: StepCosts) -> float | None:
    """The T_draft(1) / T_target(1) at which a step that emits ``tokens_per_step`` tokens costs as much as they do.

    None where verification and overhead alone cost more: then no drafter is fast enough at this acceptance.
    """
    plain = costs.target_s + costs.plain_overhead_s
    left = tokens_per_step * plain - costs.verify_s - costs.overhead_s
    return left / (costs.gamma * costs.target_s) if left > 0 else None
