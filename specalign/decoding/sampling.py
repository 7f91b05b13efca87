"""From logits to probabilities to tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How p and q are made from logits, alike for both. Raises ValueError for values out of range."""

    temperature: float = 0.0
    """0: greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose mass reaches top_p; 1: all."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"need temperature >= 0, top_k >= 0 and 0 < top_p <= 1: {self}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Distribution over the last dimension, in float32 (float64 for float64 logits).

    Temperature first, then top-k, then top-p over what is left, renormalised. Greedy is one-hot on the argmax.
    """
    precise = logits if logits.dtype == torch.float64 else logits.float()
    if sampling.greedy:
        best = precise.argmax(-1, keepdim=True)
        return torch.zeros_like(precise).scatter_(-1, best, 1.0)
    precise = precise / sampling.temperature
    if 0 < sampling.top_k < precise.shape[-1]:
        threshold = precise.topk(sampling.top_k, dim=-1).values[..., -1:]
        precise = precise.masked_fill(precise < threshold, -torch.inf)
    p = precise.softmax(-1)
    return p if sampling.top_p == 1 else _nucleus(p, sampling.top_p)


def sample(p: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One index a row of p [..., V], which need not be normalised, by inverse CDF in float64. Returns [...].

    A token of probability 0 is never drawn; of NaN, an id that means nothing.
    """
    cdf = p.double().cumsum(-1)
    total = cdf[..., -1:]
    uniform = torch.rand(total.shape, dtype=torch.float64, device=p.device, generator=generator)
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, point, right=True).squeeze(-1).clamp(max=p.shape[-1] - 1)


def _nucleus(p: Tensor, top_p: float) -> Tensor:
    ordered, index = p.sort(dim=-1, descending=True)
    mass_before = ordered.cumsum(-1) - ordered
    kept = torch.zeros_like(p).scatter_(-1, index, ordered.masked_fill(mass_before >= top_p, 0.0))
    return kept / kept.sum(-1, keepdim=True)
