"""When to stop drafting: after gamma tokens, or where the next one is not expected to pay.

Deciding from what was drafted and q alone keeps verification lossless: each rule accepts a token by what stands
before it, and whether a further token was drafted is known before that token is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FORGETTING = 0.95
"""What is left, a step later, of the weight of what was seen: a drafter that was wrong a few times is tried again."""
PRIOR_WEIGHT = 4.0
"""Tokens that the assumptions below are worth, beside those that were seen."""
PRIOR_ACCEPTANCE = 0.5
"""Acceptance of a token that is not drafted yet, before anything was seen."""
BINS = 5
"""Equal classes of the drafter's confidence in which its acceptance is estimated."""


@dataclass(frozen=True)
class Adaptive:
    """Draft while the next tokens' expected gain is above their cost; gamma is the most.

    A step that drafts n tokens costs C_n = n c + T_target(n + 1) / T_target(1) plain steps and is expected to emit
    1 + S_1 + ... + S_n tokens, S_j being the probability that the first j are all accepted. The rate of tokens per
    cost over a request is largest (renewal reward; Ross, Introduction to Probability Models, section 7.4) when
    drafting goes on from i tokens exactly while some n in i + 1..gamma has

        S_{i+1} + ... + S_n  >  r (C_n - C_i),

    r being that largest rate, never below 1, which is plain decoding. r is estimated by the request's own tokens
    over its own cost, S_j by the acceptance seen so far among drafted tokens of like confidence, times the mean
    acceptance for each token that is not drafted yet. Nothing is kept from one request to the next.
    """

    c: float
    """T_draft(1) / T_target(1)."""
    verify: tuple[float, ...] = ()
    """T_target(n + 1) / T_target(1) for n = 0, 1, ...; beyond its end the last slope goes on. Empty: always 1."""

    def __post_init__(self) -> None:
        if self.c < 0 or any(ratio <= 0 for ratio in self.verify):
            raise ValueError(f"need c >= 0 and positive ratios of verification: {self}")

    @classmethod
    def measured(cls, draft_s: float, target_s: Sequence[float]) -> Adaptive:
        """From the seconds of drafting one token, and of a target call on 1, 2, ... tokens."""
        return cls(draft_s / target_s[0], tuple(seconds / target_s[0] for seconds in target_s))

    def cost(self, n: int) -> float:
        """C_n, in plain steps."""
        return n * self.c + self._verification(n)

    def _verification(self, n: int) -> float:
        ratios = self.verify or (1.0,)
        if n < len(ratios):
            return ratios[n]
        slope = ratios[-1] - ratios[-2] if len(ratios) > 1 else 0.0
        return ratios[-1] + (n - len(ratios) + 1) * max(0.0, slope)


class DraftLength:
    """The policy of one row of one request."""

    def __init__(self, costs: Adaptive) -> None:
        self.costs = costs
        self.all = _Share(PRIOR_ACCEPTANCE)
        self.alike = [_Share((place + 0.5) / BINS) for place in range(BINS)]
        self.tokens, self.paid = 1.0, 1.0  # as if one plain step had been made
        self.confidences: list[float] = []
        self.limit, self.stopped = 0, True

    def begin(self, limit: int, n_accepted: int | None) -> None:
        """A step of up to ``limit`` drafted tokens; ``n_accepted`` of the last one's were (None: there was none)."""
        if n_accepted is not None:
            self._learn(n_accepted)
        self.confidences, self.limit, self.stopped = [], limit, False

    def drafted(self, confidence: float) -> None:
        """One more token was drafted, to which the drafter gives this probability; ignored after the stop."""
        if not self.stopped:
            self.confidences.append(confidence)

    def goes_on(self) -> bool:
        """Whether to draft one more token; a draft that has stopped stays so."""
        self.stopped = self.stopped or not self._pays()
        return not self.stopped

    def _pays(self) -> bool:
        done = len(self.confidences)
        survival, gain = 1.0, 0.0
        for confidence in self.confidences:
            survival *= self._like(confidence).mean
        rate, spent = max(1.0, self.tokens / self.paid), self.costs.cost(done)
        for n in range(done + 1, self.limit + 1):
            survival *= self.all.mean
            gain += survival
            if gain > rate * (self.costs.cost(n) - spent):
                return True
        return False

    def _learn(self, n_accepted: int) -> None:
        for share in (self.all, *self.alike):
            share.forget()
        examined = self.confidences[: n_accepted + 1]
        for place, confidence in enumerate(examined):
            for share in (self.all, self._like(confidence)):
                share.see(place < n_accepted)
        self.tokens += 1 + n_accepted
        self.paid += self.costs.cost(len(self.confidences))

    def _like(self, confidence: float) -> _Share:
        return self.alike[min(BINS - 1, int(confidence * BINS))]


class _Share:
    """A share of successes: a prior, and what was seen, the latest weighing most."""

    def __init__(self, prior: float) -> None:
        self.prior, self.hits, self.seen = prior, 0.0, 0.0

    @property
    def mean(self) -> float:
        return (PRIOR_WEIGHT * self.prior + self.hits) / (PRIOR_WEIGHT + self.seen)

    def see(self, hit: bool) -> None:
        self.hits += hit
        self.seen += 1

    def forget(self) -> None:
        self.hits *= FORGETTING
        self.seen *= FORGETTING
