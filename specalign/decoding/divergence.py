"""Why two greedy outputs differ: a tie of logits, rounding, or a defect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.decoding.session import decoder_sequences, rooms
from specalign.models.heads import head_of, hidden_states

Divergence = Literal["none", "tie", "numeric", "unexplained"]

PADDINGS = (1, 4, 12)
"""Tokens appended to a text to see how much its logits depend on the shape of the call."""


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
    """Compare two greedy outputs of ``target`` to one prompt, by forward calls without a cache.

    ``tie``: where they first differ, both tokens' logits lie within ``tolerance`` of the largest one, so that
    rounding alone decides. ``numeric``: they lie within the model's own numerical noise there, twice the most that
    any logit moves when tokens are appended to the text, which a causal model's mathematics does not notice but its
    kernels do (half precision; the engine's cache has no part in it). ``unexplained``: anything else, one output
    being the beginning of the other included.
    """
    place = first_difference(ours, theirs)
    if place is None:
        return "none"
    if place >= min(len(ours), len(theirs)):
        return "unexplained"
    text = list(ours[:place])
    logits = _next_logits(target, prompt, text, 0)
    gap = float(logits.max() - torch.minimum(logits[ours[place]], logits[theirs[place]]))
    if gap <= tolerance:
        return "tie"
    paddings = _paddings(target, prompt, text)
    moved = [_next_logits(target, prompt, text, padding) - logits for padding in paddings]
    noise = max((float(change.abs().max()) for change in moved), default=0.0)
    return "numeric" if gap <= 2 * noise else "unexplained"


def _paddings(target: PreTrainedModel, prompt: Sequence[int], text: Sequence[int]) -> list[int]:
    """Those that stay within the context: beyond it some models scale all positions, which is no noise."""
    (start,) = decoder_sequences(target, [prompt])
    free = rooms(target, [[*start, *text]])
    return [padding for padding in PADDINGS if free is None or padding <= free[0]]


def _next_logits(target: PreTrainedModel, prompt: Sequence[int], text: Sequence[int], padding: int) -> Tensor:
    """Logits [V] after ``text``, computed in one call with ``padding`` more tokens behind it."""
    (start,) = decoder_sequences(target, [prompt])
    sequence = [*start, *text]
    ids = torch.tensor([sequence + sequence[-1:] * padding], device=target.device)
    inputs = {"input_ids": ids}
    if target.config.is_encoder_decoder:
        inputs = {"input_ids": torch.tensor([list(prompt)], device=target.device), "decoder_input_ids": ids}
    return head_of(target)(hidden_states(target, **inputs)[0, len(sequence) - 1]).float()
