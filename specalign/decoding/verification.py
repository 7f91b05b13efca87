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


def _at(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] for a 0-dimensional index, without waiting for the device to learn its value."""
    return rows.index_select(0, index.view(1)).squeeze(0)


RULES: dict[str, Rule] = {"token": token}
"""Rules for sampling, by name. At temperature 0 every lossless rule is :func:`greedy`."""
