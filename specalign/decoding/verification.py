"""Verification rules: which drafted tokens stay, and what follows them. Pure functions of one row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specalign.decoding.sampling import sample

Verdict = tuple[Tensor, Tensor]
"""(number of accepted tokens, the target's own next token), both 0-dimensional."""
Rule = Callable[[Tensor, Tensor, Tensor, torch.Generator | None], Verdict]


def greedy(best: Tensor, drafted: Tensor) -> Verdict:
    """Keep drafted tokens as long as each is the target's argmax; then take the target's argmax.

    Leviathan et al. 2023 (arXiv:2211.17192), section 2.2, at temperature 0. ``best`` [n + 1] holds the target's
    argmax after 0..n drafted tokens, ``drafted`` [n] the draft.
    """
    accepted = (best[: len(drafted)] == drafted).cumprod(0).sum()
    return accepted, _at(best, accepted)


def token(p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator | None = None) -> Verdict:
    """Accept x_i with probability min(1, p_i(x_i) / q_i(x_i)); at the first rejection sample max(0, p_i - q_i).

    Leviathan et al. 2023, algorithm 1: the emitted tokens are distributed as the target's own. Where all are
    accepted the next token comes from p_{n+1}, and where p_i = q_i leaves no residual mass (a rejection then is
    rounding), from p_i.

    p [n + 1, V] and q [n, V] are distributions that were filtered alike, drafted [n] was sampled from q.
    """
    n = len(drafted)
    chosen = drafted.unsqueeze(-1)
    uniform = torch.rand(n, dtype=p.dtype, device=p.device, generator=generator)
    kept = uniform * q.gather(-1, chosen).squeeze(-1) < p[:n].gather(-1, chosen).squeeze(-1)
    accepted = kept.cumprod(0).sum()
    p_next = _at(p, accepted)
    q_next = _at(torch.cat([q, torch.zeros_like(p[:1])]), accepted)
    residual = (p_next - q_next).clamp(min=0)
    return accepted, sample(torch.where(residual.sum() > 0, residual, p_next), generator)


def block(p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator | None = None) -> Verdict:
    """Accept or reject the draft as a whole prefix: lossless, and in expectation never shorter than :func:`token`.

    Sun et al. 2024 (arXiv:2403.10444), algorithm 2. With w_0 = 1, w_i = min(1, w_{i-1} p_i(x_i) / q_i(x_i)) and
    r_i = sum_v max(0, w_i p_{i+1}(v) - q_{i+1}(v)), the prefix of length i may end the draft with probability
    h_i = r_i / (r_i + 1 - w_i), h_n = w_n; the longest one that may is kept. What follows it is sampled from
    max(0, w_i p_{i+1} - q_{i+1}), after the whole draft from p_{n+1}. Arguments as for :func:`token`.
    """
    n = len(drafted)
    chosen = drafted.unsqueeze(-1)
    ratios = (p[:n].gather(-1, chosen) / q.gather(-1, chosen)).squeeze(-1)
    weights = [torch.ones_like(p[0, 0])]
    for ratio in ratios:
        weights.append((weights[-1] * ratio).clamp(max=1))
    w = torch.stack(weights)
    residuals = (w.unsqueeze(-1) * p - torch.cat([q, torch.zeros_like(p[:1])])).clamp(min=0)  # last row: w_n p
    mass = residuals.sum(-1)
    ends = torch.where(mass + 1 - w > 0, mass / (mass + 1 - w), 1)  # 0 / 0: all that could follow is accepted
    ends = torch.cat([torch.ones_like(w[:1]), ends[1:-1], w[1:][-1:]])  # no token is always possible
    uniform = torch.rand(n + 1, dtype=p.dtype, device=p.device, generator=generator)
    places = torch.arange(n + 1, device=p.device)
    accepted = torch.where(uniform < ends, places, 0).max()
    residual = _at(residuals, accepted)
    return accepted, sample(torch.where(residual.sum() > 0, residual, _at(p, accepted)), generator)


def lenience(
    p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator | None = None, *, factor: float = 0.5
) -> Verdict:
    """LOSSY: :func:`token` with ``factor`` * q in place of q, which accepts more and changes the distribution.

    Accepts x_i with probability min(1, p_i(x_i) / (factor q_i(x_i))), 0 < factor <= 1; no token's probability
    rises above p / factor. Leviathan et al. 2023, appendix A.5; DistillSpec (arXiv:2310.08461), section 5, with
    the linear lenience function. ``factor`` 1 is :func:`token`.
    """
    return token(p, factor * q, drafted, generator)


def _at(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] for a 0-dimensional index, without waiting for the device to learn its value."""
    return rows.index_select(0, index.view(1)).squeeze(0)


RULES: dict[str, Rule] = {"token": token, "block": block, "lenience": lenience}
"""Rules for sampling, by name. At temperature 0, where p and q are one-hot, each of them is :func:`greedy`."""
LOSSY = frozenset({"lenience"})
"""Rules that change the target's distribution at temperatures above 0."""
