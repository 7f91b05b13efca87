"""Why two greedy outputs differ: a tie of logits, rounding, or a defect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

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
    gamma: int = 0,
    tolerance: float = 1e-4,
) -> Divergence:
    """Compare two greedy outputs of ``target`` to one prompt, of which one drafted ``gamma`` tokens a step.

    ``tie``: where they first differ, both tokens' logits lie within ``tolerance`` of the largest one, so that
    rounding alone decides. ``numeric``: they lie within the model's own numerical noise there, twice the most that
    any logit moves with the shape of the call, which the mathematics of a causal model does not notice but its
    kernels do (half precision): when tokens are appended to the text, and when it is fed to transformers' own cache
    in calls of 1 and of gamma + 1 tokens (the engine's cache has no part in it). ``unexplained``: anything else,
    one output being the beginning of the other included.
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
    shapes = [_next_logits(target, prompt, text, padding) for padding in _paddings(target, prompt, text)]
    shapes += [_cached_logits(target, prompt, text, n) for n in sorted({1, gamma + 1})]
    noise = max(float((other - logits).abs().max()) for other in shapes)
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


def _cached_logits(target: PreTrainedModel, prompt: Sequence[int], text: Sequence[int], n: int) -> Tensor:
    """Logits [V] after ``text``, fed to transformers' own cache ``n`` tokens a call, after all but the last token
    of what precedes it in one."""
    (start,) = decoder_sequences(target, [prompt])
    ids = torch.tensor([[*start, *text]], device=target.device)
    decoder, inputs = target.get_decoder(), {}
    cache: Cache = DynamicCache(config=decoder.config)
    if target.config.is_encoder_decoder:
        encoder_ids = torch.tensor([list(prompt)], device=target.device)
        inputs = {"encoder_hidden_states": target.get_encoder()(input_ids=encoder_ids).last_hidden_state}
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    calls = [*ids[:, : len(start) - 1].split(max(1, len(start) - 1), 1), *ids[:, len(start) - 1 :].split(n, 1)]
    for call in calls:
        if call.shape[1]:
            hidden = decoder(input_ids=call, past_key_values=cache, use_cache=True, **inputs).last_hidden_state
    return head_of(target)(hidden[0, -1]).float()
