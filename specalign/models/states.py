"""The states that a model's layers pass on: what a head on the target's states reads.

While a model decodes they are left in the cache that a call is given, where eager code and a traced graph both find
them; elsewhere they are caught as they pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
Find = Callable[[dict[str, Any]], States | None]
"""Of a layer's keyword arguments: where its state is left; None: nowhere."""


@contextmanager
def states_entering(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[States]:
    """Catch, in each forward pass while the context lasts, what enters ``layers``. Nothing is copied.

    Raises ValueError for a layer that the model has not.
    """
    caught: States = {}
    with _hooks(model, layers, lambda _kwargs: caught):
        yield caught


@contextmanager
def reading(model: PreTrainedModel, reads: Sequence[int]) -> Iterator[None]:
    """While it lasts, a call of the decoder leaves what it ``reads`` in the ``states`` of the cache that it is given.

    A cache without them is left alone. Raises ValueError for a layer that the model has not.
    """
    with _hooks(model, reads, _of_cache):
        yield


def read_for_good(model: PreTrainedModel, reads: Sequence[int]) -> None:
    """As :func:`reading`, without an end."""
    _hooked(model, reads, _of_cache)


@contextmanager
def _hooks(model: PreTrainedModel, layers: Sequence[int], find: Find) -> Iterator[None]:
    handles = _hooked(model, layers, find)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooked(model: PreTrainedModel, places: Sequence[int], find: Find) -> list[RemovableHandle]:
    layers = decoder_layers(model)
    if places and not 0 <= min(places) <= max(places) <= len(layers):
        raise ValueError(f"{type(model).__name__} has states 0..{len(layers)}, not {tuple(places)}")
    return [_hook(layers, place, find) for place in places]


def _hook(layers: nn.ModuleList, place: int, find: Find) -> RemovableHandle:
    if place < len(layers):
        return layers[place].register_forward_pre_hook(partial(_entering, place, find), with_kwargs=True)
    return layers[-1].register_forward_hook(partial(_leaving, place, find), with_kwargs=True)


def _entering(place: int, find: Find, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _leave(find(kwargs), place, args[0] if args else kwargs["hidden_states"])


def _leaving(
    place: int, find: Find, _layer: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any
) -> None:
    _leave(find(kwargs), place, output if isinstance(output, Tensor) else output[0])


def _leave(states: States | None, place: int, state: Tensor) -> None:
    if states is not None:
        states[place] = state


def _of_cache(kwargs: dict[str, Any]) -> States | None:
    return getattr(kwargs.get("past_key_values"), "states", None)
