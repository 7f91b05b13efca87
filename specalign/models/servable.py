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
from torch.nn import functional
from transformers import PreTrainedModel

from specalign.errors import UserError
from specalign.models.heads import Head, head_of, hidden_states

MASS = 1e-3
"""Most probability that all blocked rows together may have."""
MARGIN = 20.0
"""Logits below what ``MASS`` asks for, at the states that make the row: it meets others."""
RIDGE = 1e-3
STEPS = 200
NEVER = -1e4
"""Bias of a blocked row, where a head has biases; float16 holds it."""


@dataclass(frozen=True)
class Blocked:
    """How far down the rows that must not win are, on states that did not make them."""

    n_rows: int
    mean_mass: float
    """Their probability together, mean over the states."""
    largest_mass: float
    """The same at the worst state; it is what is bounded."""
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
    with biases gets zero rows and a bias of -1e4. Else all n blocked rows are one row w that loses at every state,

        h'w <= logsumexp of the trained logits - log n + log MASS - MARGIN:

    the minimum of the mean softplus of what is missing and of a ridge, a convex problem. There is such a row since the
    final states of a trained model lie on one side, their mean being long beside what moves them.

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


def _row(head: Head, blocked: Tensor, states: Tensor) -> Tensor:
    """w in float32; no row at all is zero. Raises UserError where the states do not lie on one side."""
    if not blocked.any():
        return torch.zeros(head.weight.shape[1])
    trained = _cut(head, (~blocked[: head.width]).nonzero()[:, 0])
    with torch.no_grad():
        floor = torch.cat([trained(part.to(head.weight)).double().logsumexp(-1) for part in states.split(256)])
    highest = _uncapped(head, floor - math.log(float(blocked.sum())) + math.log(MASS))
    inputs = states.double() * head.scale
    row = _below(inputs, highest - MARGIN)
    above = float((inputs @ row > highest).double().mean())
    if above:
        raise UserError(
            f"no row loses at every state of this model (it keeps a mass above {MASS:g} at {above:.1%} of them): train "
            "with its full head (student.draft_vocabulary = 0)"
        )
    return row.float()


def _below(inputs: Tensor, wanted: Tensor) -> Tensor:
    """w [d] for which inputs [n, d] @ w lies below wanted [n] wherever it can."""
    row = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    ridge = RIDGE * float(inputs.square().mean())
    optimiser = torch.optim.LBFGS([row], max_iter=STEPS, line_search_fn="strong_wolfe")

    def missing() -> Tensor:
        optimiser.zero_grad()
        loss = functional.softplus(inputs @ row - wanted).mean() + ridge * row.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(missing)
    return row.detach()


def _cut(head: Head, rows: Tensor) -> Head:
    bias = None if head.bias is None else head.bias[rows]
    return Head(head.weight[rows], bias, head.scale, head.softcap)


def _uncapped(head: Head, logits: Tensor) -> Tensor:
    """What the soft-cap takes to ``logits``. Raises UserError where no logit can be as low."""
    if head.softcap is None:
        return logits
    if float(logits.min()) <= -head.softcap:
        raise UserError(
            f"logits of this model cannot fall below -{head.softcap:g} (a soft-cap): train with its full head "
            "(student.draft_vocabulary = 0)"
        )
    return head.softcap * torch.atanh((logits / head.softcap).clamp(max=1 - 1e-9))


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
    """The blocked rows' mass at states that did not make them.

    Raises UserError where one of them is the likeliest token, or their mass reaches ``MASS``, at any of the states.
    """
    head = head_of(model)
    rows = blocked.to(states.device)
    masses, wins = [], 0
    for part in states.split(256):
        p = head(part.to(head.weight)).float().softmax(-1)
        masses.append(p[:, rows].sum(-1))
        wins += int(rows[p.argmax(-1)].sum())
    mass = torch.cat(masses)
    mean, largest = float(mass.mean()), float(mass.max())
    if wins or largest >= MASS:
        raise UserError(
            f"at {wins:,} of {len(states):,} held-out states a token that was never trained would be drafted (a mass "
            f"of up to {largest:.2g}, {MASS:g} is allowed): give more --prompts, or train with the full head"
        )
    return Blocked(int(blocked.sum()), mean, largest, len(states))


@torch.inference_mode()
def response_states(model: PreTrainedModel, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """[n, d] final hidden states from which a decoder-only model drafts each token of (prompt, response) pairs."""
    found: list[Any] = []
    for prompt, response in texts:
        ids = torch.tensor([[*prompt, *response]], device=model.device)
        found.append(hidden_states(model, input_ids=ids)[0, len(prompt) - 1 : -1])
    return torch.cat(found).float()
