"""Weighted ridge regression of b on a from sums over samples, in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """The unpadded tokens of one batch, in float64."""

    inner: Tensor
    """a [n, f]: input of the linear map."""
    mapped: Tensor
    """[n, d]: its result."""
    added: Tensor
    """[n, d]: what the layer adds, without the map's bias, which is not refitted."""
    wanted: Tensor
    """b [n, d]: what it should add."""
    weight: Tensor
    """w [n, 1]."""


@dataclass
class Sums:
    """Sufficient statistics of a weighted regression of b on a, and the present error."""

    gram: Tensor
    """[f, f] sum of w a a'."""
    cross: Tensor
    """[f, d] sum of w a b'."""
    size: Tensor
    """Sum of w |b|^2."""
    error: Tensor
    """Sum of w |added - b|^2."""


def accumulate(sums: Sums | None, samples: Samples, directions: bool) -> Sums:
    """Add a batch to ``sums``, or begin them; with ``directions``, b / rms(b) is regressed, with weights w rms(b)^2."""
    scale = samples.weight.sqrt()
    a, b = samples.inner * scale, samples.wanted * scale
    if directions:
        a = a * _rms(samples.wanted)
    error = (samples.weight * (samples.added - samples.wanted).square()).sum()
    new = Sums(a.T @ a, a.T @ b, b.square().sum(), error)
    if sums is None:
        return new
    sums.gram += new.gram
    sums.cross += new.cross
    sums.size += new.size
    sums.error += new.error
    return sums


def solve(sums: Sums, ridge: float) -> Tensor:
    """[f, d]: W transposed."""
    damped = sums.gram.clone()
    damped.diagonal().add_(ridge * sums.gram.diagonal().mean())
    return torch.linalg.solve(damped, sums.cross)


def relative_error(solution: Tensor, sums: Sums) -> float:
    """Sum of w |W a - b|^2 from the sums alone, over the sum of w |b|^2."""
    total = sums.size - 2 * (solution * sums.cross).sum() + (solution * (sums.gram @ solution)).sum()
    return float(total / sums.size)


def fit_gain(stream: Iterable[Samples]) -> tuple[Tensor, float]:
    """The gain [d] of each channel that fits best with the present W, and the relative error that is left."""
    square, product, size = torch.zeros(3, dtype=torch.float64)
    for samples in stream:
        unit, w = samples.mapped / _rms(samples.mapped), samples.weight
        square = square + (w * unit.square()).sum(0)
        product = product + (w * unit * samples.wanted).sum(0)
        size = size + (w * samples.wanted.square()).sum()
    gain = product / square.clamp(min=1e-24)
    return gain, float((size - (gain * product).sum()) / size)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
