"""Which layers of a teacher matter: block influence (Men et al. 2024, ShortGPT, arXiv:2403.03853, equation 1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from specalign.models.alignment import Batch, caught_states, kept_tokens
from specalign.models.properties import Tower, tower_layers


@torch.no_grad()
def layer_influence(
    teacher: PreTrainedModel, batches: Iterable[Batch], tower: Tower = "decoder"
) -> list[float]:
    """For each layer 1 - mean over tokens of cos(x_in, x_out): 0 where it leaves the residual stream's direction.

    Computed in float32 on the unpadded tokens, in [0, 2].
    """
    layers = tower_layers(teacher, tower)
    totals, n_tokens = torch.zeros(len(layers)), 0
    for batch in batches:
        caught = caught_states(teacher, batch, layers, tower)
        kept = kept_tokens(batch, tower)
        totals += torch.stack([_turn(*caught[layer], kept) for layer in layers]).cpu()
        n_tokens += int(kept.sum())
    return (totals / n_tokens).tolist()


def _turn(before: Tensor, after: Tensor, kept: Tensor) -> Tensor:
    """Sum over tokens of 1 - cos(before, after)."""
    return (1 - functional.cosine_similarity(before[kept].float(), after[kept].float(), dim=-1)).sum()


def most_influential(influence: Sequence[float], n_keep: int) -> tuple[int, ...]:
    """First and last layer, which a slice always keeps, and the most influential ones of the rest, in order."""
    inner = sorted(range(1, len(influence) - 1), key=lambda layer: -influence[layer])[: n_keep - 2]
    return (0, *sorted(inner), len(influence) - 1)
