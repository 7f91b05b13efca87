"""Verification rules: which drafted tokens stay, and what follows them. Pure functions of any number of rows.

Shapes: p [..., n + 1, V], q [..., n, V], drafted [..., n]; ``counts`` [...] says how many of a row's n drafted
tokens were proposed (the others are padding), None: all.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from specalign.decoding.sampling import sample

Verdict = tuple[Tensor, Tensor]
"""(number of accepted tokens, the target's own next token), both of the leading dimensions [...]."""


class Rule(Protocol):
    """A rule for sampling."""

    def __call__(
        self,
        p: Tensor,
        q: Tensor,
        drafted: Tensor,
        generator: torch.Generator | None = None,
        *,
        counts: Tensor | None = None,
    ) -> Verdict:
        """Decide on a draft that was sampled from q."""


def greedy(best: Tensor, drafted: Tensor, counts: Tensor | None = None) -> Verdict:
    """Keep drafted tokens as long as each is the target's argmax; then take the target's argmax.

    Leviathan et al. 2023 (arXiv:2211.17192), section 2.2, at temperature 0. ``best`` [..., n + 1] holds the
    target's argmax after 0..n drafted tokens, ``drafted`` [..., n] the draft.
    """
    accepted = ((best[..., :-1] == drafted) & _proposed(drafted, counts)).cumprod(-1).sum(-1)
    return accepted, best.gather(-1, accepted.unsqueeze(-1)).squeeze(-1)


def token(
    p: Tensor,
    q: Tensor,
    drafted: Tensor,
    generator: torch.Generator | None = None,
    *,
    counts: Tensor | None = None,
) -> Verdict:
    """Accept x_i with probability min(1, p_i(x_i) / q_i(x_i)); at the first rejection sample max(0, p_i - q_i).

    Leviathan et al. 2023, algorithm 1: the emitted tokens are distributed as the target's own. Where all are
    accepted the next token comes from p_{n+1}, and where p_i = q_i leaves no residual mass (a rejection then is
    rounding), from p_i.

    p and q are distributions that were filtered alike; drafted was sampled from q.
    """
    uniform = torch.rand(drafted.shape, dtype=p.dtype, device=p.device, generator=generator)
    proposed = _proposed(drafted, counts)
    kept = (uniform * _of(q, drafted) < _of(p[..., :-1, :], drafted)) & proposed
    accepted = kept.cumprod(-1).sum(-1)
    whole = (accepted == proposed.sum(-1)).unsqueeze(-1)
    p_next = pick(p, accepted)
    q_next = pick(_with_end(q), accepted).masked_fill(whole, 0)
    residual = (p_next - q_next).clamp(min=0)
    return accepted, _sample_or(residual, p_next, generator)


def block(
    p: Tensor,
    q: Tensor,
    drafted: Tensor,
    generator: torch.Generator | None = None,
    *,
    counts: Tensor | None = None,
) -> Verdict:
    """Accept or reject the draft as a whole prefix: lossless, and in expectation never shorter than :func:`token`.

    Sun et al. 2024 (arXiv:2403.10444), algorithm 2. With w_0 = 1, w_i = min(1, w_{i-1} p_i(x_i) / q_i(x_i)) and
    r_i = sum_v max(0, w_i p_{i+1}(v) - q_{i+1}(v)), the prefix of length i may end the draft with probability
    h_i = r_i / (r_i + 1 - w_i), h_n = w_n; the longest one that may is kept. What follows it is sampled from
    max(0, w_i p_{i+1} - q_{i+1}), after the whole draft from p_{n+1}. Arguments as for :func:`token`.
    """
    proposed = _proposed(drafted, counts)
    n = proposed.sum(-1, keepdim=True)
    w = _weights((_of(p[..., :-1, :], drafted) / _of(q, drafted)).masked_fill(~proposed, 1))
    places = torch.arange(w.shape[-1], device=p.device)
    q = _with_end(q).masked_fill((places == n).unsqueeze(-1), 0)  # after the whole draft: w_n p
    residuals = (w.unsqueeze(-1) * p - q).clamp(min=0)
    mass = residuals.sum(-1)
    ends = torch.where(mass + 1 - w > 0, mass / (mass + 1 - w), 1)  # 0 / 0: all that could follow is accepted
    ends = torch.where(places == n, w, ends).masked_fill(places > n, 0)
    ends = ends.masked_fill(places == 0, 1)  # no token is always possible
    uniform = torch.rand(w.shape, dtype=p.dtype, device=p.device, generator=generator)
    accepted = torch.where(uniform < ends, places, 0).amax(-1)
    return accepted, _sample_or(pick(residuals, accepted), pick(p, accepted), generator)


def lenience(
    p: Tensor,
    q: Tensor,
    drafted: Tensor,
    generator: torch.Generator | None = None,
    *,
    counts: Tensor | None = None,
    factor: float = 0.5,
) -> Verdict:
    """LOSSY: :func:`token` with ``factor`` * q in place of q, which accepts more and changes the distribution.

    Accepts x_i with probability min(1, p_i(x_i) / (factor q_i(x_i))), 0 < factor <= 1; no token's probability
    rises above p / factor. Leviathan et al. 2023, appendix A.5; DistillSpec (arXiv:2310.08461), section 5, with
    the linear lenience function. ``factor`` 1 is :func:`token`.
    """
    return token(p, factor * q, drafted, generator, counts=counts)


def pick(rows: Tensor, index: Tensor) -> Tensor:
    """rows[..., index, :] for rows [..., m, V] and index [...], without waiting for the device to learn it."""
    wanted = index[..., None, None].expand(*index.shape, 1, rows.shape[-1])
    return rows.gather(-2, wanted).squeeze(-2)


def _of(distributions: Tensor, ids: Tensor) -> Tensor:
    """Probability of each id: [..., n, V], [..., n] -> [..., n]."""
    return distributions.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _proposed(drafted: Tensor, counts: Tensor | None) -> Tensor:
    """Which of ``drafted`` [..., n] are no padding."""
    if counts is None:
        return torch.ones_like(drafted, dtype=torch.bool)
    return torch.arange(drafted.shape[-1], device=drafted.device) < counts.unsqueeze(-1)


def _with_end(q: Tensor) -> Tensor:
    """q [..., n, V] with one more row of zeros: nothing is drafted there."""
    return torch.cat([q, torch.zeros_like(q[..., :1, :])], -2)


def _weights(ratios: Tensor) -> Tensor:
    """w_0, ..., w_n [..., n + 1] of the ratios p_i(x_i) / q_i(x_i) [..., n]."""
    weights = [torch.ones_like(ratios[..., 0])]
    for ratio in ratios.unbind(-1):
        weights.append((weights[-1] * ratio).clamp(max=1))
    return torch.stack(weights, -1)


def _sample_or(residual: Tensor, p: Tensor, generator: torch.Generator | None) -> Tensor:
    """A token of the residual; of p where no mass is left."""
    return sample(torch.where(residual.sum(-1, keepdim=True) > 0, residual, p), generator)


RULES: dict[str, Rule] = {"token": token, "block": block, "lenience": lenience}
"""Rules for sampling, by name. At temperature 0, where p and q are one-hot, each of them is :func:`greedy`."""
LOSSY = frozenset({"lenience"})
"""Rules that change the target's distribution at temperatures above 0."""
