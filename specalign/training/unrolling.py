"""A head's drafts along given text: each step on its own output of the step before, as in decoding.

Entry e of a row reads token e + 1 beside a hidden state and predicts token e + 2. In step 0 the hidden state is the
projection of the target's states at e. In step j it is what step j - 1 put out for the entry before, and attention sees
the entries up to e - j as step 0 made them, then this draft's own: entry e - j + i as step i made it, i = 1..j. Those
are the keys and values that a draft of j + 1 tokens after entry e - j has in its cache (EAGLE-3, arXiv:2503.01840,
section 3.2, "training-time test").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from specalign.models.eagle import EagleHead
from specalign.training.rows import Layout


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


def unrolled(head: EagleHead, layout: Layout, n_steps: int) -> list[Tensor]:
    """[N, h] of each of ``n_steps`` steps: what the output head is applied to at the scored tokens.

    The scored tokens are the same in all steps: one that step j predicts is the last of a draft of j + 1 tokens. A
    draft that would begin before the row does begins with its first entry instead, and is that much shorter. ``layout``
    holds what the head reads, and rows without branches whose first scored token is their third or a later one.
    """
    assert layout.read is not None, "a head needs the teacher's states"
    assert layout.visible is None, "a head's rows have no branches"
    ids = layout.input_ids[:, 1:]
    hidden = head.project(layout.read[:, :-1])
    n, device = ids.shape[1], ids.device
    row, place = layout.predictors // (n + 1), layout.predictors % (n + 1)
    entries, first = row * n + place - 1, torch.arange(n, device=device)
    positions = first.expand_as(ids)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    found: list[Tensor] = []
    output = hidden
    for step in range(n_steps):
        mask = seen(n, step, device)[None, None]
        made, key, value = _run(head, ids, hidden, positions, mask, *keys, *values)
        keys, values = [*keys, key], [*values, value]
        output = made if step == 0 else torch.where((first < step)[None, :, None], output, made)
        found.append(head.head_input(output).flatten(0, 1)[entries])
        hidden = torch.cat([output[:, :1], output[:, :-1]], dim=1)
    return found


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
