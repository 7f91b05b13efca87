"""Why two greedy outputs differ: a tie of logits, or a defect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel

from specalign.decoding.session import decoder_sequences
from specalign.models.heads import head_of, hidden_states

Divergence = Literal["none", "tie", "unexplained"]


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Index of the first token that differs; a missing token counts as one. None for equal sequences."""
    if list(ours) == list(theirs):
        return None
    shorter = min(len(ours), len(theirs))
    return next((place for place in range(shorter) if ours[place] != theirs[place]), shorter)


@torch.inference_mode()
def classify_divergence(
    target: PreTrainedModel,
    prompt: Sequence[int],
    ours: Sequence[int],
    theirs: Sequence[int],
    *,
    tolerance: float = 1e-4,
) -> Divergence:
    """Compare two greedy outputs of ``target`` to one prompt, by one forward call without a cache.

    ``tie``: where they first differ, both tokens' logits lie within ``tolerance`` of the largest one, so that
    rounding alone decides. ``unexplained``: anything else, one output being the beginning of the other included.
    """
    place = first_difference(ours, theirs)
    if place is None:
        return "none"
    if place >= min(len(ours), len(theirs)):
        return "unexplained"
    (start,) = decoder_sequences(target, [prompt])
    sequence = torch.tensor([[*start, *ours[:place]]], device=target.device)
    inputs = {"input_ids": sequence}
    if target.config.is_encoder_decoder:
        inputs = {
            "input_ids": torch.tensor([list(prompt)], device=target.device),
            "decoder_input_ids": sequence,
        }
    logits = head_of(target)(hidden_states(target, **inputs)[0, -1]).float()
    gap = logits.max() - torch.minimum(logits[ours[place]], logits[theirs[place]])
    return "tie" if float(gap) <= tolerance else "unexplained"
