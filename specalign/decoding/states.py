"""The states that a model's layers pass on, kept while it decodes: what a head on the target's states reads.

They are left in the cache that a call is given, where eager code and a traced graph both find them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from specalign.models.properties import decoder_layers

States = dict[int, Tensor]
"""Layer -> what enters it [B, n, h], embeddings for 0; the number of layers -> what leaves the last one, before the
final norm."""


@contextmanager
def reading(model: PreTrainedModel, reads: Sequence[int]) -> Iterator[None]:
    """While it lasts, a call of the decoder leaves what it ``reads`` in the ``states`` of the cache that it is given.

    Raises ValueError for a layer that the model has not.
    """
    handles = hooked(model, reads)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hooked(model: PreTrainedModel, reads: Sequence[int]) -> list[RemovableHandle]:
    """The same until the handles are removed; a cache without ``states`` is left alone."""
    layers = decoder_layers(model)
    if reads and not 0 <= min(reads) <= max(reads) <= len(layers):
        raise ValueError(f"{type(model).__name__} has states 0..{len(layers)}, not {tuple(reads)}")
    return [_hook(layers, place) for place in reads]


def _hook(layers: nn.ModuleList, place: int) -> RemovableHandle:
    if place < len(layers):
        return layers[place].register_forward_pre_hook(partial(_entering, place), with_kwargs=True)
    return layers[-1].register_forward_hook(partial(_leaving, place), with_kwargs=True)


def _entering(place: int, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _leave(kwargs, place, args[0])


def _leaving(
    place: int, _layer: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    _leave(kwargs, place, output if isinstance(output, Tensor) else output[0])


def _leave(kwargs: dict[str, Any], place: int, state: Tensor) -> None:
    states = getattr(kwargs.get("past_key_values"), "states", None)
    if states is not None:
        states[place] = state
