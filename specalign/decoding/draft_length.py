"""When to stop drafting: after gamma tokens, or where the next one is not expected to pay.

Deciding from what was drafted and q alone keeps verification lossless: each rule accepts a token by what stands
before it, and whether a further token was drafted is known before that token is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FORGETTING = 0.95
"""What is left, a step later, of the weight of what was seen: a drafter that was wrong a few times is tried again."""
FORGETTING_IDLE = 0.99
"""The same for a step that another drafter made: trying again costs drafts and verification, and half of it is left
after 69 steps, so that a drafter that does not suit a text is tried about once a request."""
PRIOR_WEIGHT = 4.0
"""Tokens that the assumptions below are worth, beside those that were seen."""
PRIOR_ACCEPTANCE = 0.5
"""Acceptance of a token that is not drafted yet, before anything was seen."""
BINS = 5
"""Equal classes of the drafter's confidence in which its acceptance is estimated."""
MOST_KNOWN = 1 / (1 - FORGETTING)
"""Tokens (of a rate: plain steps) that earlier requests are worth at most: as many as a long request remembers of its
own, one a step, so that it can learn otherwise as fast as it could unlearn itself."""


@dataclass(frozen=True)
class Tally:
    """Drafted tokens that were looked at, and those of them that were accepted; both weighted."""

    n_accepted: float = 0.0
    n_seen: float = 0.0

    def plus(self, accepted: bool) -> Tally:
        """With one more token."""
        return Tally(self.n_accepted + accepted, self.n_seen + 1)

    def times(self, left: float) -> Tally:
        """With ``left`` of its weight."""
        return Tally(left * self.n_accepted, left * self.n_seen)


@dataclass(frozen=True)
class Origin:
    """Where one row's draft came from: which part of a hybrid, and its confidence's class at each token."""

    part: int
    """-1: nothing was drafted."""
    classes: tuple[int, ...] = ()
    price: float = 0.0
    """Of a trial (a part that promised nothing drafts one token): tokens that it was expected to cost; 0: none."""


def class_of(confidence: float) -> int:
    """The class, of ``BINS``, of a token to which its drafter gives this probability."""
    return min(BINS - 1, int(confidence * BINS))


@dataclass(frozen=True)
class DraftCosts:
    """What a draft of n tokens costs in plain steps: C_n = (T_draft(n) + T_target(n + 1)) / T_target(1)."""

    c: float
    """T_draft(1) / T_target(1)."""
    verify: tuple[float, ...] = ()
    """T_target(n + 1) / T_target(1) for n = 0, 1, ...; beyond its end the last slope goes on. Empty: always 1."""
    draft: tuple[float, ...] = ()
    """T_draft(n) / T_target(1) for n = 0, 1, ...; beyond its end the last slope goes on. Empty: n c, a call a token."""

    def __post_init__(self) -> None:
        if self.c < 0 or any(ratio <= 0 for ratio in self.verify) or any(ratio < 0 for ratio in self.draft):
            raise ValueError(f"need c >= 0 and positive ratios of verification and drafting: {self}")

    @classmethod
    def measured(cls, draft_s: Sequence[float], target_s: Sequence[float]) -> DraftCosts:
        """From the seconds of drafting 1, 2, ... tokens, and of a target call on 1, 2, ... tokens."""
        verify = tuple(seconds / target_s[0] for seconds in target_s)
        return cls(draft_s[0] / target_s[0], verify, (0.0, *(seconds / target_s[0] for seconds in draft_s)))

    def reading(self, n: int) -> float:
        """What it costs to read a prompt of ``n`` tokens, in plain steps.

        Taken to cost of the drafter what it costs of the target: T_draft(1) T_target(n) / T_target(1), where a further
        token of a target's call costs the mean of those that were timed.
        """
        one = self.draft[1] if len(self.draft) > 1 else self.c
        slope = (self.verify[-1] - self.verify[0]) / (len(self.verify) - 1) if len(self.verify) > 1 else 0.0
        return one * (1 + n * max(0.0, slope))

    def cost(self, n: int) -> float:
        """C_n, in plain steps."""
        drafting = _along(self.draft, n) if self.draft else n * self.c
        return drafting + _along(self.verify or (1.0,), n)


def _along(ratios: Sequence[float], n: int) -> float:
    """The n-th ratio; beyond the last one on the line through the last two, never downwards."""
    if n < len(ratios):
        return ratios[n]
    slope = ratios[-1] - ratios[-2] if len(ratios) > 1 else 0.0
    return ratios[-1] + (n - len(ratios) + 1) * max(0.0, slope)


class Rate:
    """Tokens per cost of one row's request so far, in plain steps: r."""

    def __init__(self) -> None:
        self.tokens, self.paid = 1.0, 1.0  # as if one plain step had been made

    @property
    def value(self) -> float:
        """Never below 1, which is plain decoding."""
        return max(1.0, self.tokens / self.paid)

    def add(self, n_tokens: float, cost: float) -> None:
        """A step that emitted ``n_tokens`` at ``cost`` plain steps."""
        self.tokens += n_tokens
        self.paid += cost

    def know(self, tokens: float, paid: float) -> None:
        """Begin from what earlier requests emitted and paid, which is worth ``MOST_KNOWN`` steps at most."""
        weight = min(1.0, MOST_KNOWN / paid) if paid else 0.0
        self.add(weight * tokens, weight * paid)


class DraftLength:
    """Draft while the next tokens' expected gain is above their cost; gamma is the most.

    A step that drafts n tokens costs C_n plain steps (:class:`DraftCosts`) and is expected to emit 1 + S_1 + ... +
    S_n tokens, S_j being the probability that the first j are all accepted. The rate of tokens per cost over a
    request is largest (renewal reward; Ross, Introduction to Probability Models, section 7.4) when drafting goes on
    from i tokens exactly while some n in i + 1..gamma has

        S_{i+1} + ... + S_n  >  r (C_n - C_i),

    r being that largest rate, never below 1, which is plain decoding. r is estimated by the request's own tokens
    over its own cost, S_j by the acceptance seen so far among drafted tokens of like confidence, times the mean
    acceptance for each token that is not drafted yet.

    One object is the policy of one row of one request, for one drafter; drafters of the same row share its ``rate``.
    Nothing is kept for the next request; what earlier ones showed may be given (:meth:`know`).
    """

    def __init__(self, costs: DraftCosts, rate: Rate | None = None) -> None:
        self.costs = costs
        self.rate = rate or Rate()
        self.all = _Share(PRIOR_ACCEPTANCE)
        self.alike = [_Share((place + 0.5) / BINS) for place in range(BINS)]
        self.confidences: list[float] = []
        self.limit, self.stopped = 0, True
        self.insists = False
        """Whether one token is to be drafted whatever it promises."""

    def know(self, tallies: Sequence[Tally]) -> None:
        """Begin from what earlier requests showed: of all tokens, and of each class of confidence."""
        for share, tally in zip((self.all, *self.alike), tallies, strict=True):
            share.know(tally)

    def begin(self, limit: int, n_accepted: int | None) -> None:
        """A step of up to ``limit`` drafted tokens; ``n_accepted`` of the last one's were (None: there was none)."""
        if n_accepted is not None:
            self.settle(n_accepted)
        self.confidences, self.limit, self.stopped = [], limit, False

    def drafted(self, confidence: float) -> None:
        """One more token was drafted, to which the drafter gives this probability; ignored after the stop."""
        if not self.stopped:
            self.confidences.append(confidence)

    def goes_on(self) -> bool:
        """Whether to draft one more token; a draft that has stopped stays so."""
        self.stopped = self.stopped or not self._pays()
        return not self.stopped

    def promise(self, confidences: Sequence[float], limit: int) -> tuple[float, int]:
        """(gain, n): the most that a draft of n = 0..limit tokens is expected to gain, in tokens, and its length.

        S_1 + ... + S_n - r (C_n - C_0). ``confidences`` are those of the first tokens; beyond them the mean acceptance
        counts. (0, 0) where no draft pays.
        """
        survival, gain, best = 1.0, 0.0, (0.0, 0)
        rate, spent = self.rate.value, self.costs.cost(0)
        for n in range(1, limit + 1):
            share = self._like(confidences[n - 1]) if n <= len(confidences) else self.all
            survival *= share.mean
            gain += survival
            best = max(best, (gain - rate * (self.costs.cost(n) - spent), n), key=lambda pair: pair[0])
        return best

    def _pays(self) -> bool:
        done = len(self.confidences)
        if self.insists:
            return done == 0 < self.limit
        survival, gain = 1.0, 0.0
        for confidence in self.confidences:
            survival *= self._like(confidence).mean
        rate, spent = self.rate.value, self.costs.cost(done)
        for n in range(done + 1, self.limit + 1):
            survival *= self.all.mean
            gain += survival
            if gain > rate * (self.costs.cost(n) - spent):
                return True
        return False

    def settle(self, n_accepted: int) -> None:
        """The step is over: ``n_accepted`` of its drafted tokens were accepted."""
        self.forget()
        examined = self.confidences[: n_accepted + 1]
        for place, confidence in enumerate(examined):
            for share in (self.all, self._like(confidence)):
                share.see(place < n_accepted)
        self.rate.add(1 + n_accepted, self.costs.cost(len(self.confidences)))
        self.confidences = []

    def forget(self, left: float = FORGETTING) -> None:
        """A step went by: what was seen weighs ``left`` of what it did, so that what failed is tried again."""
        for share in (self.all, *self.alike):
            share.forget(left)

    def _like(self, confidence: float) -> _Share:
        return self.alike[class_of(confidence)]


class _Share:
    """A share of successes: a prior, and what was seen, the latest weighing most."""

    def __init__(self, prior: float) -> None:
        self.prior, self.weight = prior, PRIOR_WEIGHT
        self.hits, self.seen = 0.0, 0.0

    @property
    def mean(self) -> float:
        return (self.weight * self.prior + self.hits) / (self.weight + self.seen)

    def know(self, tally: Tally) -> None:
        """Take for the prior what it makes of earlier requests' tokens, at the weight of ``MOST_KNOWN`` at most."""
        weight = self.weight + tally.n_seen
        self.prior = (self.weight * self.prior + tally.n_accepted) / weight
        self.weight = min(weight, MOST_KNOWN)

    def see(self, hit: bool) -> None:
        self.hits += hit
        self.seen += 1

    def forget(self, left: float) -> None:
        self.hits *= left
        self.seen *= left


class DraftLengths:
    """The adaptive draft lengths of a batch, each row's by its own policy."""

    def __init__(self, costs: DraftCosts, n_rows: int) -> None:
        self.rows = [DraftLength(costs) for _ in range(n_rows)]
        self.before: list[int | None] = [None] * n_rows

    @property
    def counts(self) -> list[int]:
        """Tokens that each row has drafted in this step."""
        return [len(row.confidences) for row in self.rows]

    def settle(self, sequences: Sequence[Sequence[int]], drafted: Sequence[bool] | None = None) -> None:
        """The last step added its accepted tokens and one more to each sequence.

        ``drafted`` says of which rows this drafter made that step's draft (None: of all). Settling a step twice is
        settling it once.
        """
        lengths = [len(sequence) for sequence in sequences]
        own = drafted or [True] * len(lengths)
        for row, before, now, mine in zip(self.rows, self.before, lengths, own, strict=True):
            if before is not None and now > before:
                row.settle(now - before - 1) if mine else row.forget(FORGETTING_IDLE)
        self.before = list(lengths)

    def begin(self, limits: Sequence[int]) -> None:
        """A step begins, of up to ``limits`` drafted tokens."""
        for row, limit in zip(self.rows, limits, strict=True):
            row.begin(limit, None)

    def go_on(self) -> bool:
        """Whether any row drafts another token."""
        wishes = [row.goes_on() for row in self.rows]
        return any(wishes)

    def drafted(self, confidences: Sequence[float]) -> None:
        """Every row got a token; it counts for those that have not stopped."""
        for row, confidence in zip(self.rows, confidences, strict=True):
            row.drafted(confidence)

    def promise(self, limits: Sequence[int]) -> list[float]:
        """What each row's draft of up to ``limits`` tokens is expected to gain beyond its cost."""
        return [row.promise((), limit)[0] for row, limit in zip(self.rows, limits, strict=True)]

    def worth(self, limits: Sequence[int]) -> list[int]:
        """How many tokens each row would draft if all were drafted at once; 0 where it has stopped."""
        drafts = zip(self.rows, limits, strict=True)
        return [0 if row.stopped else 1 if row.insists else row.promise((), limit)[1] for row, limit in drafts]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.rows, self.before = [self.rows[row] for row in rows], [self.before[row] for row in rows]

    def know(self, tallies: Sequence[Tally]) -> None:
        """Every row begins from what earlier requests showed."""
        for row in self.rows:
            row.know(tallies)

    def share_rates(self, other: DraftLengths) -> None:
        """Both draft for the same rows: what either spends and gains counts for both."""
        for ours, theirs in zip(self.rows, other.rows, strict=True):
            ours.rate = theirs.rate
