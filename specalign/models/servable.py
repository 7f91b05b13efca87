"""A drafter as other engines draft with it: as many rows as the target, and no untrained one among them ever wins.

vLLM, SGLang and llama.cpp want a draft model whose vocabulary is as wide as the target's, and draft with every row of
its head. A drafter that was trained over a trimmed vocabulary leaves the other rows as they were, and some objectives
(a rank loss moves all logits as it likes) leave them high enough to win: the engine drafts what training never meant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specalign.errors import UserError
from specalign.models.heads import Head, head_of, hidden_states
from specalign.models.regression import Samples, accumulate, solve

MASS = 1e-3
"""Most probability that all blocked rows together may have, at any state."""
SAFETY = 100.0
"""The rows are made for this many times less."""
RIDGE = 1e-6
NEVER = -1e4
"""Bias of a blocked row, where a head has biases; float16 holds it."""


@dataclass(frozen=True)
class Blocked:
    """How far down the rows that must not win are, on states that did not make them."""

    n_rows: int
    largest_mass: float
    """Their probability together at the worst state."""
    n_states: int


def is_blocked(width: int, n_known: int, kept: Tensor | None) -> Tensor:
    """[width] which rows must never win: those outside ``kept`` [V'], and those beyond ``n_known`` rows."""
    blocked = torch.ones(width, dtype=torch.bool)
    trained = torch.arange(min(n_known, width)) if kept is None else kept[kept < width].cpu()
    blocked[trained] = False
    return blocked


def block(model: PreTrainedModel, width: int, kept: Tensor | None, states: Tensor) -> Tensor:
    """Give ``model`` heads and embeddings of ``width`` rows, those of :func:`is_blocked` never winning; returns which.

    ``states`` [n, d] are final hidden states of a decoder-only model, such as the rows meet when they draft. A head
    with biases gets zero rows and a bias of -1e4. Else every blocked row is c w, with w the ridge solution of
    h'w = -1 over the states: a direction along which all of them lie on one side, as the final norm keeps their length
    (the negative mean is nearly it). c is the least for which, at every state, the rows' logits leave them a mass of
    ``MASS / SAFETY``:

        c = max_h (log n + log(SAFETY / MASS) - logsumexp of the trained logits) / -h'w.

    The head is untied from the embedding where a blocked row is an input's too. Raises UserError where the states do
    not lie on one side.
    """
    head = head_of(model)
    blocked = is_blocked(width, head.width, kept)
    tied = head.weight is model.get_input_embeddings().weight
    if not blocked.any() and width == head.width:
        return blocked
    row = _row(head, blocked, states.detach()) if head.bias is None else torch.zeros(head.weight.shape[1])
    stays = tied and not bool(blocked[: head.width].any())
    _resize(model, width, blocked, row.to(head.weight), tied=stays)
    return blocked


@torch.no_grad()
def _row(head: Head, blocked: Tensor, states: Tensor) -> Tensor:
    """c w in float32; no row at all is zero."""
    if not blocked.any():
        return torch.zeros(head.weight.shape[1])
    inputs = states.double() * head.scale
    ones = torch.ones(len(inputs), 1, dtype=torch.float64)
    sums = accumulate(None, Samples(inputs, 0 * ones, 0 * ones, -ones, ones), directions=False)
    direction = solve(sums, RIDGE)[:, 0]
    depth = -(inputs @ direction)
    if float(depth.min()) <= 0:
        share = float((depth <= 0).double().mean())
        raise UserError(
            f"no row loses at every state of this model ({share:.1%} lie on the other side): train with its full head "
            "(student.draft_vocabulary = 0)"
        )
    trained = (~blocked[: head.width]).nonzero()[:, 0]
    floor = torch.cat(
        [_cut(head, trained)(part.to(head.weight)).double().logsumexp(-1) for part in states.split(256)]
    )
    wanted = math.log(float(blocked.sum())) + math.log(SAFETY / MASS) - floor
    level = float((_uncapped(head, wanted) / depth).max())
    return (max(level, 0.0) * direction).float()


def _cut(head: Head, rows: Tensor) -> Head:
    bias = None if head.bias is None else head.bias[rows]
    return Head(head.weight[rows], bias, head.scale, head.softcap)


def _uncapped(head: Head, below: Tensor) -> Tensor:
    """-x of the logit x that the soft-cap takes to -``below``. Raises UserError where no logit is low enough."""
    if head.softcap is None:
        return below
    if float(below.max()) >= head.softcap:
        raise UserError(
            f"logits of this model cannot fall below -{head.softcap:g} (a soft-cap): train with its full head "
            "(student.draft_vocabulary = 0)"
        )
    return head.softcap * torch.atanh(below / head.softcap)


@torch.no_grad()
def _resize(model: PreTrainedModel, width: int, blocked: Tensor, row: Tensor, *, tied: bool) -> None:
    head, embedding = head_of(model), model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    n = min(width, head.width)
    weight = head.weight.new_zeros(width, head.weight.shape[1])
    weight[:n] = head.weight[:n]
    weight[blocked.to(weight.device)] = row
    output = nn.Linear(
        weight.shape[1], width, bias=head.bias is not None, device=weight.device, dtype=weight.dtype
    )
    output.weight.copy_(weight)
    if head.bias is not None:
        output.bias[:n] = head.bias[:n]
        output.bias[blocked.to(weight.device)] = NEVER
    table = weight
    if not tied:
        table = embedding.weight.new_zeros(width, embedding.weight.shape[1])
        table[:n] = embedding.weight[:n]
    embedding.weight, embedding.num_embeddings = nn.Parameter(table, requires_grad=False), width
    if tied:
        output.weight = embedding.weight
    model.set_output_embeddings(output)
    config = model.config.get_text_config()
    config.vocab_size, config.tie_word_embeddings = width, tied


@torch.inference_mode()
def verified(model: PreTrainedModel, blocked: Tensor, states: Tensor) -> Blocked:
    """The blocked rows' mass at states that did not make them. Raises UserError where one could win, or ``MASS`` is
    exceeded."""
    head = head_of(model)
    rows = blocked.to(states.device)
    masses, wins = [], 0
    for part in states.split(256):
        p = head(part.to(head.weight)).float().softmax(-1)
        masses.append(p[:, rows].sum(-1))
        wins += int(rows[p.argmax(-1)].sum())
    largest = float(torch.cat(masses).max()) if masses else 0.0
    if wins or largest > MASS:
        raise UserError(
            f"of {len(states):,} held-out states {wins:,} would draft a token that was never trained (mass up to "
            f"{largest:.2g}, {MASS:g} is allowed): give more --prompts, or train with the full head"
        )
    return Blocked(int(blocked.sum()), largest, len(states))


@torch.inference_mode()
def response_states(model: PreTrainedModel, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """[n, d] final hidden states from which a decoder-only model drafts each token of (prompt, response) pairs."""
    found: list[Any] = []
    for prompt, response in texts:
        ids = torch.tensor([[*prompt, *response]], device=model.device)
        found.append(hidden_states(model, input_ids=ids)[0, len(prompt) - 1 : -1])
    return torch.cat(found).float()
