"""Objectives over long vocabularies without whole logits in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK_BYTES = 64 * 2**20
"""Size of one [chunk, C] float32 tensor by default; about a dozen of them are alive at the peak."""


class LinearHead(Protocol):
    """A head that ends a model: logits = cap(scale * hidden @ weight.T + bias). models.heads.Head is one."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...
    @property
    def scale(self) -> float: ...
    def cap(self, logits: Tensor) -> Tensor: ...


class SplitObjective(Protocol):
    """An objective in two steps (see ``losses.Objective``): what needs logits, what needs whole sequences."""

    @property
    def is_local(self) -> bool: ...
    def measure(
        self, student_logits: Tensor, teacher_logits: Tensor | None, *, labels: Tensor | None = None
    ) -> Tensor: ...
    def combine(
        self, columns: Tensor, *, sequence_ids: Tensor | None = None, reference_loss: Tensor | None = None
    ) -> Tensor: ...


def chunked_loss(
    objective: SplitObjective,
    student: tuple[Tensor, LinearHead],
    teacher: tuple[Tensor, Callable[[Tensor], Tensor]] | None,
    *,
    labels: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    reference_loss: Tensor | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Per-token loss [...] of ``objective`` from hidden states, ``chunk_tokens`` positions at a time.

    ``student`` and ``teacher`` are (hidden states [..., d], head: [n, d] -> aligned logits [n, C]); the logits
    of one chunk are alive at a time. Same values and gradients as the objective on whole logits; gradients
    reach the student's hidden states, head weight and bias, none the teacher. ``teacher`` may be None where
    the objective does not look at it. ``chunk_tokens`` defaults to 64 MiB for one float32 tensor of logits.

    An objective that is local to each token forms its gradients in the forward pass already, on the assumption
    that all tokens will weigh the same (what a mean gives): then no logits are computed twice. Where the
    backward pass finds other weights, and for objectives over sequences or selected tokens, logits are computed
    again there, of the tokens that have a gradient. Second derivatives are not supported.
    """
    hidden, head = student
    rows = hidden.reshape(-1, hidden.shape[-1])
    work = _Work(
        objective,
        head.cap,
        None if teacher is None else (teacher[0].detach().reshape(-1, teacher[0].shape[-1]), teacher[1]),
        None if labels is None else labels.reshape(-1),
        chunk_tokens or max(1, CHUNK_BYTES // (4 * head.weight.shape[0])),
        objective.is_local and torch.is_grad_enabled(),
        *_precision(hidden.device.type),
    )
    columns = _Columns.apply(rows * head.scale, head.weight, head.bias, work)
    return objective.combine(
        columns.unflatten(0, hidden.shape[:-1]), sequence_ids=sequence_ids, reference_loss=reference_loss
    )


@dataclass(frozen=True)
class _Work:
    """What both passes do with the student's raw logits of a chunk."""

    objective: SplitObjective
    cap: Callable[[Tensor], Tensor]
    teacher: tuple[Tensor, Callable[[Tensor], Tensor]] | None
    labels: Tensor | None
    chunk_tokens: int
    eager: bool
    """Form gradients in the forward pass."""
    device: str
    autocast: bool
    autocast_dtype: torch.dtype

    def measure(self, raw: Tensor, rows: Tensor) -> Tensor:
        teacher_logits = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher_logits = self.teacher[1](self.teacher[0][rows])
        labels = None if self.labels is None else self.labels[rows]
        return self.objective.measure(self.cap(raw), teacher_logits, labels=labels)

    def precision(self) -> AbstractContextManager[Any]:
        """The caller's autocast state: the backward pass runs outside of it."""
        return torch.autocast(self.device, dtype=self.autocast_dtype, enabled=self.autocast)


def _precision(device: str) -> tuple[str, bool, torch.dtype]:
    return device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


class _Columns(torch.autograd.Function):
    """Scaled hidden states [N, d], weight [C, d], bias [C] or None -> what the objective measures [N, K]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.work = work
        ctx.gradients = None
        needed = ctx.needs_input_grad[:3]
        if work.eager and any(needed):
            ctx.gradients = _Gradients.zeros((hidden, weight, bias), needed)
        parts = []
        with work.precision():
            for rows in torch.arange(len(hidden), device=hidden.device).split(work.chunk_tokens):
                raw = functional.linear(hidden[rows], weight, bias)
                if ctx.gradients is None:
                    parts.append(work.measure(raw, rows))
                else:
                    parts.append(_differentiate(work, raw, rows, ctx.gradients, (hidden, weight)))
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is not None and gradients.rescale(upstream):
            return *gradients.tensors, None
        gradients = _Gradients.zeros((hidden, weight, bias), ctx.needs_input_grad[:3])
        active = upstream.ne(0).any(-1).nonzero()[:, 0]
        with ctx.work.precision():
            for rows in active.split(ctx.work.chunk_tokens):
                raw = functional.linear(hidden[rows], weight, bias)
                _differentiate(ctx.work, raw, rows, gradients, (hidden, weight), upstream[rows])
        return *gradients.tensors, None


@dataclass
class _Gradients:
    """Sums over chunks, in float32 or better; None where no gradient is wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def zeros(cls, inputs: tuple[Tensor | None, ...], needed: tuple[bool, ...]) -> _Gradients:
        return cls(
            *(
                torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
                if tensor is not None and wanted
                else None
                for tensor, wanted in zip(inputs, needed, strict=True)
            )
        )

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.hidden, self.weight, self.bias

    def rescale(self, upstream: Tensor) -> bool:
        """Turn gradients of the plain sum into those for ``upstream`` [N, 1]; False where they cannot be."""
        shared = self.weight is not None or self.bias is not None
        if shared and not bool((upstream == upstream[:1]).all()):
            return False
        if self.hidden is not None:
            self.hidden.mul_(upstream)
        for total in (self.weight, self.bias):
            if total is not None:
                total.mul_(upstream[:1].sum())
        return True


def _differentiate(
    work: _Work,
    raw: Tensor,
    rows: Tensor,
    gradients: _Gradients,
    inputs: tuple[Tensor, Tensor],
    upstream: Tensor | None = None,
) -> Tensor:
    """Measure one chunk and add its gradients for ``upstream`` [n, K] (None: ones) to the sums."""
    raw = raw.detach().requires_grad_()
    with torch.enable_grad():
        columns = work.measure(raw, rows)
    (slope,) = torch.autograd.grad(columns, raw, torch.ones_like(columns) if upstream is None else upstream)
    hidden, weight = inputs
    if gradients.hidden is not None:
        gradients.hidden[rows] = (slope @ weight).to(gradients.hidden.dtype)
    if gradients.weight is not None:
        _add_outer(gradients.weight, slope, hidden[rows])
    if gradients.bias is not None:
        gradients.bias += slope.sum(0)
    return columns.detach()


def _add_outer(total: Tensor, slope: Tensor, hidden: Tensor) -> None:
    """total [C, d] += slope.T @ hidden, without a temporary of that size where the dtypes allow it."""
    if total.dtype == slope.dtype == hidden.dtype:
        total.addmm_(slope.T, hidden)
    else:
        total += slope.T @ hidden
