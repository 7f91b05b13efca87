"""Did what came out of a sampler follow the distribution that it claims? Sums that stay near zero only then."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor  # who reads a finished run needs the sums, not torch


@dataclass(frozen=True)
class Moments:
    """A sum of numbers in 0..1, what it should be, and the variance of their difference.

    Each term's expectation and variance are those given everything before it, so that observed - expected is a
    martingale whatever ended the text: sums of several outputs add up field by field.
    """

    observed: float
    expected: float
    variance: float

    @property
    def p_value(self) -> float:
        """Two-sided: 2 exp(-d^2 / (2 V + 2 |d| / 3)), d = observed - expected; at most 1.

        Freedman's inequality (Tropp 2011, theorem 1.1, R = 1, with the realised variance): a bound for any number of
        terms, not an approximation for many.
        """
        d = abs(self.observed - self.expected)
        return 1.0 if d == 0 else min(1.0, 2 * math.exp(-d * d / (2 * self.variance + 2 * d / 3)))


def total(parts: Iterable[Moments]) -> Moments:
    """The moments of all terms together."""
    kept = list(parts)
    return Moments(
        math.fsum(part.observed for part in kept),
        math.fsum(part.expected for part in kept),
        math.fsum(part.variance for part in kept),
    )


def token_moments(p: Tensor, ids: Tensor) -> Moments:
    """Of G(x) over tokens x = ids [n] said to be drawn from p [n, V].

    G(x) is the mass of the tokens less likely than x and half of x's own (those equally likely in some fixed order),
    in 0..1. A sample of p has the mean sum_v p(v) G(v) = 1/2 exactly, and the variance sum_v p(v) G(v)^2 - 1/4; a
    sampler that prefers likely tokens lies above, one that prefers unlikely ones below. Computed in float64.
    """
    precise = p.double()
    ordered, index = (precise / precise.sum(-1, keepdim=True)).sort(dim=-1)
    place = ordered.cumsum(-1) - ordered / 2
    variance = ((ordered * place.square()).sum(-1) - 0.25).clamp(min=0)
    own = precise.new_zeros(precise.shape).scatter_(-1, index, place).gather(-1, ids.unsqueeze(-1))
    return Moments(float(own.sum()), len(ids) / 2, float(variance.sum()))


def acceptance_moments(n_accepted: Sequence[int], overlap: Sequence[Sequence[float]]) -> Moments:
    """Of accepted drafts: entry i of both is a step, ``overlap`` one number a token that the rule examined.

    Rejection sampling accepts a token drawn from q with the probability sum_v min(p, q), whatever came before
    (Leviathan et al. 2023, section 3.2).
    """
    shares = [min(1.0, share) for step in overlap for share in step]
    return Moments(sum(n_accepted), math.fsum(shares), math.fsum(share * (1 - share) for share in shares))
