"""A preallocated key-value cache with a length per row: rolling back is subtracting.

Plugs into transformers' Cache interface. A forward call writes each row's new keys at that row's own
positions; what lies beyond a row's length is never attended to and gets overwritten, so neither ragged prompts
nor rejected drafts ever need moving or clearing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from specalign.decoding.transfer import to_device
from specalign.models.states import States

Place = slice | tuple[Tensor, Tensor]


@dataclass
class _Places:
    """Where the announced call writes. The layers hold this and not their cache: tensors in a cycle of references
    would wait for Python's full garbage collection, dozens of dead caches at a time."""

    capacity: int
    lengths: list[int]
    """Valid positions of each row."""
    place: Place
    end: int = 0
    """Key positions of the call: up to the longest row's last new token."""


class RowCache(Cache):
    """Keys and values [B, heads, capacity, d] of every layer, and the number of valid positions of each row."""

    def __init__(self, n_layers: int, n_rows: int, capacity: int) -> None:
        self.places = _Places(capacity, [0] * n_rows, slice(0))
        self.rows_of_layers = [_RowLayer(self.places) for _ in range(n_layers)]
        self.states: States = {}
        """Of the last call, where something reads them."""
        super().__init__(layers=list(self.rows_of_layers))

    @property
    def capacity(self) -> int:
        """Positions that can be held."""
        return self.places.capacity

    @property
    def lengths(self) -> list[int]:
        """Valid positions of each row."""
        return self.places.lengths

    @lengths.setter
    def lengths(self, lengths: list[int]) -> None:
        self.places.lengths = lengths

    @property
    def end(self) -> int:
        """Key positions of the announced call."""
        return self.places.end

    def begin(self, n_new: int, device: torch.device) -> Tensor:
        """Announce a forward call over ``n_new`` tokens a row; returns their positions [B, n_new]."""
        end = max(self.lengths) + n_new
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {end} are needed")
        self.places.end = end
        if min(self.lengths) == max(self.lengths):
            start = self.lengths[0]
            self.places.place = slice(start, start + n_new)
            return torch.arange(start, start + n_new, device=device).expand(len(self.lengths), -1)
        rows = torch.arange(len(self.lengths), device=device).unsqueeze(1)
        starts = to_device(self.lengths, device).unsqueeze(1)
        positions = starts + torch.arange(n_new, device=device)
        self.places.place = (rows, positions)
        return positions

    def select(self, rows: Sequence[int], lengths: Sequence[int], capacity: int) -> RowCache:
        """A new cache whose row i is a copy of row ``rows[i]``, cut to ``lengths[i]``."""
        copy = RowCache(len(self.layers), len(rows), capacity)
        copy.fill(self, rows, lengths)
        return copy

    def fill(self, source: RowCache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Let row i be a copy of row ``rows[i]`` of ``source`` (which may be this cache), cut to ``lengths[i]``."""
        if max(lengths) > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {max(lengths)} are needed")
        for old, new in zip(source.rows_of_layers, self.rows_of_layers, strict=True):
            if old.is_initialized:
                new.copy_rows(old, rows, max(lengths))
        self.lengths = list(lengths)


class _RowLayer(CacheLayerMixin):
    """One layer of a RowCache; all bookkeeping is in the shared places."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self.places = places

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate in the shape and dtype of the first states."""
        rows, heads, _, _ = key_states.shape
        shape = (rows, heads, self.places.capacity)
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write [B, heads, n_new, d] at the announced places; return all positions up to the longest row's."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self.places.place
        if isinstance(place, slice):
            self.keys[:, :, place] = key_states
            self.values[:, :, place] = value_states
        else:
            rows, positions = place
            self.keys[rows, :, positions] = key_states.transpose(1, 2)
            self.values[rows, :, positions] = value_states.transpose(1, 2)
        return self.keys[:, :, : self.places.end], self.values[:, :, : self.places.end]

    def copy_rows(self, old: _RowLayer, rows: Sequence[int], length: int) -> None:
        """Overwrite the first rows with ``rows`` of another layer, up to ``length`` positions."""
        index = to_device(rows, old.keys.device)
        for name in ("keys", "values"):
            source = getattr(old, name)
            if not self.is_initialized:
                shape = (len(rows), source.shape[1], self.places.capacity, source.shape[3])
                setattr(self, name, source.new_zeros(shape))
            getattr(self, name)[: len(rows), :, :length] = source[:, :, :length].index_select(0, index)
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of key positions of the announced call, and their offset."""
        return self.places.end, 0

    def get_seq_length(self) -> int:
        """Positions before the announced call; one number only where the rows agree (T5 asks for it)."""
        return max(self.places.lengths)

    def get_max_length(self) -> int:
        """Positions that can be held."""
        return self.places.capacity
