"""What a hybrid's parts showed in earlier requests, from which the next one begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specalign.decoding.draft_length import BINS, FORGETTING, DraftCosts, Tally
from specalign.decoding.records import Step

UNKNOWN: tuple[Tally, ...] = (Tally(),) * (1 + BINS)
TRYING = 0.01
"""Share of all tokens that trials may cost: half of the 2 % that a run of 40 prompts tells apart, so that a part that
never pays is not seen to cost anything."""


@dataclass
class Trials:
    """One row's account: a part that promises nothing may draft a token while all such trials cost little.

    Without them a part that failed once by chance would never be asked again, since nothing more is learnt of it. To
    try within a share of what the known choice earned is the rule of conservative bandits (Wu et al. 2016,
    arXiv:1602.04282).
    """

    spent: float = 0.0
    """Tokens that trials cost, less what they brought."""
    tokens: float = 0.0
    """All tokens."""

    def affords(self, price: float) -> bool:
        """Whether a trial of ``price`` tokens would stay within ``TRYING``."""
        return self.spent + price <= TRYING * self.tokens

    def settle(self, price: float, n_accepted: int, n_emitted: int) -> None:
        """A step is over; ``price`` is 0 where it was no trial."""
        self.spent += price - n_accepted if price else 0.0
        self.tokens += n_emitted


@dataclass(frozen=True)
class Experience:
    """Acceptance of each part's tokens, and tokens per cost of all, over requests.

    A later request takes them for its prior (``DraftLength.know``). They follow from the recorded steps alone, in the
    order of the requests, and each request lets what was there before weigh ``FORGETTING`` of what it did: a part that
    did not pay is tried again some requests later.
    """

    parts: tuple[tuple[Tally, ...], ...]
    """Of each part: all of its tokens, then those of each class of confidence."""
    tokens: float = 0.0
    paid: float = 0.0
    """In plain steps."""
    spent: float = 0.0
    """On trials; as :class:`Trials`, this and ``emitted`` do not fade."""
    emitted: float = 0.0

    @classmethod
    def none(cls, n_parts: int) -> Experience:
        """Nothing was seen yet."""
        return cls((UNKNOWN,) * n_parts)

    def after(self, steps: Sequence[Step], costs: Sequence[DraftCosts]) -> Experience:
        """With one more request of a hybrid whose parts cost ``costs``; unchanged where no part could draft."""
        known = [(step.origin, step) for step in steps if step.origin]
        if not known:
            return self
        parts = [[one.times(FORGETTING) for one in own] for own in self.parts]
        trials, paid = Trials(self.spent, self.emitted), 0.0
        for origin, step in known:
            own = parts[origin.part]
            for place, class_ in enumerate(origin.classes):
                for slot in (0, 1 + class_):
                    own[slot] = own[slot].plus(place < step.n_accepted)
            trials.settle(origin.price, step.n_accepted, step.n_emitted)
            paid += costs[max(0, origin.part)].cost(step.n_drafted)
        return Experience(
            tuple(map(tuple, parts)),
            FORGETTING * self.tokens + sum(step.n_emitted for _, step in known),
            FORGETTING * self.paid + paid,
            trials.spent,
            trials.tokens,
        )
