"""Objectives over long vocabularies without whole logits in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK_BYTES, CHUNK_BYTES_ON_CUDA = 64 * 2**20, 512 * 2**20
"""Size of one [chunk, C] float32 tensor by default; about a dozen of them are alive at the peak. On CUDA products of
few rows are bound by their launches: 64 MiB are 110 rows at Qwen's vocabulary."""


def chunk_bytes(device: torch.device) -> int:
    """The default there."""
    return CHUNK_BYTES_ON_CUDA if device.type == "cuda" else CHUNK_BYTES


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
    def horizon(self) -> int | None: ...
    @property
    def n_columns(self) -> int: ...
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
    equal_weights: bool = False,
) -> Tensor:
    """Per-token loss [...] of ``objective`` from hidden states, ``chunk_tokens`` positions at a time.

    ``student`` and ``teacher`` are (hidden states [..., d], head: [n, d] -> aligned logits [n, C]); the logits
    of one chunk are alive at a time. Same values and gradients as the objective on whole logits; gradients
    reach the student's hidden states, head weight and bias, none the teacher. ``teacher`` may be None where
    the objective does not look at it. ``chunk_tokens`` defaults to 64 MiB (CUDA: 512) for one float32 tensor of
    logits, and two thirds of that where the objective has two columns, each with a gradient of that size.

    The forward pass forms the gradients already, on the assumption that all tokens will weigh the same (what a
    mean gives): then no logits are computed twice. Where the backward pass finds other weights, and for an
    objective that selects among all tokens, logits are computed again there, of the tokens that have a
    gradient. With ``equal_weights`` the caller promises a mean or a sum, and the backward pass does not wait for the
    device to learn that; a broken promise is an error there. Second derivatives are not supported.
    """
    hidden, head = student
    device, n_bytes = hidden.device.type, chunk_bytes(hidden.device)
    task = _Task(
        objective,
        head.cap,
        None if teacher is None else (teacher[0].detach().flatten(0, -2), teacher[1]),
        None if labels is None else labels.flatten(),
        partial(objective.combine, sequence_ids=sequence_ids, reference_loss=reference_loss),
        hidden.shape[:-1],
        chunk_tokens or max(1, 2 * n_bytes // (4 * head.weight.shape[0] * (1 + objective.n_columns))),
        torch.is_grad_enabled(),
        equal_weights,
        partial(
            torch.autocast,
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
        ),
    )
    rows = hidden.flatten(0, -2) * head.scale
    return _ChunkedLoss.apply(rows, head.weight, head.bias, task).view(task.shape)


@dataclass(frozen=True)
class _Task:
    """What both passes need beside the student's hidden states and head."""

    objective: SplitObjective
    cap: Callable[[Tensor], Tensor]
    teacher: tuple[Tensor, Callable[[Tensor], Tensor]] | None
    labels: Tensor | None
    combine: Callable[[Tensor], Tensor]
    shape: torch.Size
    chunk_tokens: int
    differentiable: bool
    equal_weights: bool
    autocast: Callable[[], AbstractContextManager[Any]]
    """The caller's autocast state: the backward pass runs outside of it."""

    def measure(self, raw: Tensor, rows: Tensor) -> Tensor:
        """Columns [n, K] of the objective for the positions ``rows`` [n], from their raw logits [n, C]."""
        teacher_logits = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher_logits = self.teacher[1](self.teacher[0][rows])
        labels = None if self.labels is None else self.labels[rows]
        return self.objective.measure(self.cap(raw), teacher_logits, labels=labels)

    def slopes(self, raw: Tensor, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The columns [n, K], and the gradient [n, C] of each of them with respect to the raw logits."""
        raw = raw.detach().requires_grad_()
        with torch.enable_grad():
            columns = self.measure(raw, rows)
            totals = columns.sum(0).unbind()
        last = len(totals) - 1
        slopes = [torch.autograd.grad(one, raw, retain_graph=k < last)[0] for k, one in enumerate(totals)]
        return columns.detach(), slopes

    def loss(self, columns: Tensor) -> Tensor:
        """Per-token loss [N] from the columns [N, K] of all tokens."""
        return self.combine(columns.view(*self.shape, columns.shape[-1])).flatten()

    def weigh(self, columns: Tensor, upstream: Tensor | None = None) -> Tensor:
        """Gradient [N, K] of the sum of losses, each times ``upstream`` [N] (None: 1), for the columns."""
        columns = columns.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.loss(columns)
        return torch.autograd.grad(loss, columns, torch.ones_like(loss) if upstream is None else upstream)[0]


class _ChunkedLoss(torch.autograd.Function):
    """Scaled hidden states [N, d], weight [C, d], bias [C] or None -> loss [N]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, task: _Task) -> Tensor:
        eager = task.differentiable and task.objective.horizon is not None and any(ctx.needs_input_grad)
        ctx.gradients = _Gradients.zeros(ctx, hidden, weight, bias) if eager else None
        with task.autocast():
            columns = _measure_all(task, hidden, weight, bias, ctx.gradients)
        ctx.task = task
        ctx.save_for_backward(hidden, weight, bias, columns)
        return task.loss(columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # they are scaled in place: good for one pass only
        local, equal = ctx.task.objective.horizon == 1, ctx.task.equal_weights
        if gradients is not None and gradients.rescale(upstream, local=local, equal=equal):
            return *gradients.tensors, None
        hidden, weight, bias, columns = ctx.saved_tensors
        gradients = _Gradients.zeros(ctx, hidden, weight, bias)
        weights = ctx.task.weigh(columns, upstream)
        active = weights.ne(0).any(-1).nonzero()[:, 0]
        with ctx.task.autocast():
            for rows in active.split(ctx.task.chunk_tokens):
                _, slopes = ctx.task.slopes(functional.linear(hidden[rows], weight, bias), rows)
                gradients.add(rows, _mix(slopes, weights[rows]), hidden, weight)
        return *gradients.tensors, None


def _measure_all(
    task: _Task, hidden: Tensor, weight: Tensor, bias: Tensor | None, gradients: _Gradients | None
) -> Tensor:
    """Columns [N, K] of all tokens. With ``gradients``, adds those of the plain sum of losses on the way.

    A token's weight in that sum depends on the ``horizon`` positions from it on, so a chunk's slopes wait until
    these are measured: no wait where the objective is local, one chunk for the windows of accepted_length.
    """
    n, horizon = len(hidden), task.objective.horizon
    parts: list[Tensor] = []
    waiting: deque[tuple[int, Tensor, list[Tensor]]] = deque()
    n_done = 0
    for rows in torch.arange(n, device=hidden.device).split(task.chunk_tokens):
        n_done += len(rows)
        raw = functional.linear(hidden[rows], weight, bias)
        if gradients is None or horizon is None:
            parts.append(task.measure(raw, rows))
            continue
        columns, slopes = task.slopes(raw, rows)
        del raw
        parts.append(columns)
        waiting.append((n_done, rows, slopes))
        while waiting and n_done >= min(n, waiting[0][0] + horizon - 1):
            _, rows, slopes = waiting.popleft()
            so_far = functional.pad(torch.cat(parts), (0, 0, 0, n - n_done))
            gradients.add(rows, _mix(slopes, task.weigh(so_far)[rows]), hidden, weight)
    return torch.cat(parts)


def _mix(slopes: list[Tensor], weights: Tensor) -> Tensor:
    """sum_k weights[:, k] * slopes[k], in place of the first."""
    mixed = slopes[0].mul_(weights[:, :1])
    for k, slope in enumerate(slopes[1:], start=1):
        mixed.addcmul_(slope, weights[:, k : k + 1].to(slope.dtype))
    return mixed


@dataclass
class _Gradients:
    """Sums over chunks, in float32 or better; None where no gradient is wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def zeros(cls, ctx: Any, *inputs: Tensor | None) -> _Gradients:
        return cls(
            *(
                torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
                if tensor is not None and wanted
                else None
                for tensor, wanted in zip(inputs, ctx.needs_input_grad, strict=False)
            )
        )

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.hidden, self.weight, self.bias

    def add(self, rows: Tensor, slope: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Add what the gradient ``slope`` [n, C] of a chunk's raw logits means for each input."""
        if self.hidden is not None:
            self.hidden[rows] = (slope @ weight).to(self.hidden.dtype)
        if self.weight is not None:
            _add_outer(self.weight, slope, hidden[rows])
        if self.bias is not None:
            self.bias += slope.sum(0)

    def rescale(self, upstream: Tensor, *, local: bool, equal: bool = False) -> bool:
        """Turn gradients of the plain sum into those for ``upstream`` [N]; False where that cannot be.

        It can for a factor that all tokens share, and for any factors where each row of the result belongs to
        one token: no gradient of weight or bias, a ``local`` objective. ``equal``: they are promised to be one.
        """
        apart = local and self.weight is None and self.bias is None
        same = (upstream == upstream[:1]).all()
        if equal:
            torch._assert_async(same, "tokens have different weights, against the caller's promise")
        elif not apart and not bool(same):
            return False
        if self.hidden is not None:
            self.hidden.mul_(upstream.unsqueeze(-1))
        for total in (self.weight, self.bias):
            if total is not None:
                total.mul_(upstream[:1].sum())
        return True


def _add_outer(total: Tensor, slope: Tensor, hidden: Tensor) -> None:
    """total [C, d] += slope.T @ hidden, without a temporary of that size where the dtypes allow it."""
    if total.dtype == slope.dtype == hidden.dtype:
        total.addmm_(slope.T, hidden)
    else:
        total += slope.T @ hidden
