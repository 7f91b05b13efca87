"""A head's drafts off given text: each step on its own output of the step before, as in decoding.

Entry e of a row reads token e + 1 beside a hidden state and predicts token e + 2. In step 0 the hidden state is the
projection of the target's states at e. In step j it is what step j - 1 put out for the entry before, and attention sees
the entries up to e - j as step 0 made them, then this draft's own: entry e - j + i as step i made it, i = 1..j. Those
are the keys and values that a draft of j + 1 tokens after entry e - j has in its cache (EAGLE-3, arXiv:2503.01840,
section 3.2, "training-time test").

The tokens that later steps read are those of the text, or what the head drafts itself (:func:`along_drafts`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from specalign.decoding.transfer import to_device
from specalign.models.eagle import EagleHead
from specalign.training.rows import Layout

Draw = Callable[[Tensor], Tensor]
"""From what the output head is applied to [M, h] to one of the target's ids each [M]."""


@dataclass
class _Blocks:
    """Keys and values [B, heads, n, d] of the steps so far, one behind the other."""

    keys: list[Tensor]
    values: list[Tensor]

    def update(self, keys: Tensor, values: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add a step's; all of them [B, heads, (j + 1) * n, d]."""
        self.keys.append(keys)
        self.values.append(values)
        return torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2)


@dataclass(frozen=True)
class Begun:
    """Step 0 of all drafts along some rows, which reads the target's states alone."""

    head: EagleHead
    ids: Tensor
    """[B, n] the token that each entry reads."""
    entries: Tensor
    """[N] those of the scored tokens, in the flattened [B * n]."""
    output: Tensor
    """[B, n, h]."""
    keys: Tensor
    """[B, heads, n, d]."""
    values: Tensor


@dataclass(frozen=True)
class Drafted:
    """A head's own drafts of J tokens, M of them."""

    steps: list[Tensor]
    """[M, h] of the steps 1, 2, ..., J - 1: what the output head is applied to."""
    tokens: Tensor
    """[M, J] what was drafted; step j read the first j of them."""


def unrolled(head: EagleHead, layout: Layout, n_steps: int) -> list[Tensor]:
    """[N, h] of each of ``n_steps`` steps along the text, see :func:`along_text`."""
    return along_text(begun(head, layout), n_steps)


def begun(head: EagleHead, layout: Layout) -> Begun:
    """Run step 0. ``layout`` holds what the head reads, and rows without branches whose first scored token is their
    third or a later one."""
    assert layout.read is not None, "a head needs the teacher's states"
    assert layout.visible is None, "a head's rows have no branches"
    ids = layout.input_ids[:, 1:]
    n, device = ids.shape[1], ids.device
    row, place = layout.predictors // (n + 1), layout.predictors % (n + 1)
    positions = torch.arange(n, device=device).expand_as(ids)
    mask = seen(n, 0, device)[None, None]
    made, keys, values = _run(head, ids, head.project(layout.read[:, :-1]), positions, mask)
    return Begun(head, ids, row * n + place - 1, made, keys, values)


def along_text(start: Begun, n_steps: int) -> list[Tensor]:
    """[N, h] of each of ``n_steps`` steps: what the output head is applied to at the scored tokens.

    The scored tokens are the same in all steps: one that step j predicts is the last of a draft of j + 1 tokens. A
    draft that would begin before the row does begins with its first entry instead, and is that much shorter.
    """
    head, ids, output = start.head, start.ids, start.output
    n, device = ids.shape[1], ids.device
    first = torch.arange(n, device=device)
    keys, values = [start.keys], [start.values]
    found = [head.head_input(output).flatten(0, 1)[start.entries]]
    for step in range(1, n_steps):
        hidden = torch.cat([output[:, :1], output[:, :-1]], dim=1)
        mask = seen(n, step, device)[None, None]
        made, key, value = _run(head, ids, hidden, first.expand_as(ids), mask, *keys, *values)
        keys, values = [*keys, key], [*values, value]
        output = torch.where((first < step)[None, :, None], output, made)
        found.append(head.head_input(output).flatten(0, 1)[start.entries])
    return found


def along_drafts(start: Begun, anchors: Sequence[Sequence[int]], n_steps: int, draw: Draw) -> Drafted:
    """Draft ``n_steps`` tokens off each anchor, step j on the j tokens that ``draw`` chose, in the order of anchors.

    ``anchors`` are, of each row, the places of the tokens that drafts begin with: such a draft knows the text before
    it, and the target's states of all of that but its last token. Gradients reach all steps through the head's own
    outputs, none passes a choice.
    """
    head, device = start.head, start.ids.device
    lines = _lines(anchors, device)
    there = torch.arange(start.ids.shape[1], device=device)
    true = there <= lines.entries[..., None]
    keys, values = [start.keys[lines.rows]], [start.values[lines.rows]]
    hidden = start.output[lines.rows[:, None], lines.entries]
    tokens = [draw(head.head_input(hidden).flatten(0, 1)[lines.real])]
    found: list[Tensor] = []
    for step in range(1, n_steps):
        ids = torch.zeros_like(lines.entries).flatten().index_copy(0, lines.real, tokens[-1])
        own = own_entries(lines.entries.shape[1], step, device).expand(len(lines.rows), -1, -1)
        mask = torch.cat([true, own], dim=2)[:, None]
        positions = lines.entries + step
        hidden, key, value = _run(head, ids.view_as(positions), hidden, positions, mask, *keys, *values)
        keys, values = [*keys, key], [*values, value]
        found.append(head.head_input(hidden).flatten(0, 1)[lines.real])
        tokens.append(draw(found[-1]))
    return Drafted(found, torch.stack(tokens, dim=1))


@dataclass(frozen=True)
class _Lines:
    """M drafts as R rows of W, padded."""

    rows: Tensor
    """[R] the rows that have drafts."""
    entries: Tensor
    """[R, W] what each draft's step 0 has read last; 0 is padding's."""
    real: Tensor
    """[M] which of the flattened [R * W] are drafts."""


def _lines(anchors: Sequence[Sequence[int]], device: torch.device) -> _Lines:
    rows = [row for row, places in enumerate(anchors) if places]
    width = max(len(anchors[row]) for row in rows)
    entries = [[place - 2 for place in anchors[row]] + [0] * (width - len(anchors[row])) for row in rows]
    real = [line * width + k for line, row in enumerate(rows) for k in range(len(anchors[row]))]
    return _Lines(to_device(rows, device), to_device(entries, device), to_device(real, device))


def _run(head: EagleHead, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step; where the head checkpoints its gradients, only its inputs are kept for the backward pass."""
    if head.gradient_checkpointing and head.training and torch.is_grad_enabled():
        return head._gradient_checkpointing_func(_step, head, *inputs)
    return _step(head, *inputs)


def _step(
    head: EagleHead, ids: Tensor, hidden: Tensor, positions: Tensor, mask: Tensor, *past: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What a step puts out [B, n, h], its keys and its values; ``past`` are the keys of all steps before, then the
    values."""
    blocks = _Blocks(list(past[: len(past) // 2]), list(past[len(past) // 2 :]))
    made = head(
        ids,
        hidden,
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cast(Cache, blocks),
    )
    return made, blocks.keys[-1], blocks.values[-1]


def seen(n: int, step: int, device: torch.device) -> Tensor:
    """[n, (step + 1) * n] True where entry e of a step sees an entry of that step or of an earlier one."""
    here = torch.arange(n, device=device)[:, None]
    there = torch.arange(n, device=device)[None, :]
    true = there <= (here - step).clamp(min=0)
    own = [there == here - step + later for later in range(1, step + 1)]
    return torch.cat([true, *own], dim=1)


def own_entries(n: int, step: int, device: torch.device) -> Tensor:
    """[n, step * n] True where one of n drafts sees the entries that it made itself in steps 1, 2, ..., ``step``."""
    return torch.eye(n, dtype=torch.bool, device=device).repeat(1, step)
