"""Drafts of a head on the target's own states (EAGLE-3, Li et al. 2025, arXiv:2503.01840)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from specalign.decoding.cache import RowCache
from specalign.decoding.draft_length import DraftCosts, DraftLengths
from specalign.decoding.drafters import (
    Drafting,
    Kind,
    MakeStepper,
    TokenByToken,
    Undrafted,
    fills_context,
)
from specalign.decoding.head_stepper import HeadStepper, make_head_stepper
from specalign.decoding.model_rows import DraftIds, within
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session, shared_prefixes
from specalign.decoding.stepper import Stepper
from specalign.decoding.transfer import to_device
from specalign.models.eagle import EagleHead


@dataclass(frozen=True)
class EagleDrafter:
    """A head that reads the target's states of the text, and its own output for what is drafted.

    Entry t of its cache is of token t + 1 and the target's states at t. After each verification the accepted tokens
    are entered with their true states; what was drafted is forgotten.
    """

    kind: ClassVar[Kind] = "model"
    model: EagleHead
    stepper: HeadStepper | None = None
    """The same head made ready (packed or compiled); None: eager."""
    adaptive: DraftCosts | None = None
    """Stop drafting where the next token is not expected to pay; None: always draft gamma tokens."""

    @property
    def reads(self) -> tuple[int, ...]:
        """The layers that the head was trained on."""
        return self.model.config.reads

    @property
    def alone(self) -> Stepper | None:
        """It reads the target: it cannot decode on its own."""
        return None

    def with_costs(self, costs: DraftCosts | None) -> EagleDrafter:
        """The same with draft lengths by ``costs``, or of gamma tokens (None)."""
        return replace(self, adaptive=costs)

    def made_ready(self, make: MakeStepper) -> EagleDrafter:
        """The same, packed or compiled."""
        return replace(self, stepper=make.head(self.model))

    def start(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, target: Session
    ) -> Drafting:
        """Begin with the prompts, which are entered later."""
        if fills_context(self.model, prompts):
            return Undrafted(self.model.device)
        stepper = self.stepper or make_head_stepper(self.model)
        ids = DraftIds(stepper.head, sampling, target.head.width)
        rows = _HeadRows(stepper, ids, target, prompts, n_new)
        return TokenByToken(rows, None if self.adaptive is None else DraftLengths(self.adaptive, len(prompts)))


@dataclass(frozen=True)
class _Chunk:
    """The target's states of one call: entry j of row i is of position ``starts[i] + j``."""

    starts: list[int]
    stops: list[int]
    """Positions of each row that it is asked for end here; a later chunk has those that follow."""
    states: Tensor
    """[B, n, k h_t]."""

    def keep(self, rows: Sequence[int]) -> _Chunk:
        """These rows only."""
        index = to_device(rows, self.states.device)
        return _Chunk([self.starts[row] for row in rows], [self.stops[row] for row in rows], self.states[index])


class _HeadRows:
    """The rows that a head drafts for, and the target's states that it has not entered yet."""

    def __init__(
        self,
        stepper: HeadStepper,
        ids: DraftIds,
        target: Session,
        prompts: Sequence[Sequence[int]],
        n_new: int,
    ) -> None:
        self.stepper, self.ids, self.target = stepper, ids, target
        self.reads, self.context = stepper.model.config.reads, stepper.context
        self.device = stepper.model.device
        self.known = [0] * len(prompts)
        """Positions of each row whose states are in ``chunks``, or entered."""
        self.chunks: list[_Chunk] = []
        self._note(prompts)
        self.prompts, self.most = list(prompts), max(map(len, prompts)) + n_new
        self.entered = [max(0, len(prompt) - 2) for prompt in prompts]
        """Entries of each row that stay: those of true states; those of the prompts once they are read."""
        if stepper.compiled:
            stepper.compiled.catch_up.require(len(prompts), self.most)
        self.filled: RowCache | None = None
        self.output: Tensor | None = None

    @property
    def cache(self) -> RowCache:
        """The head's entries; it reads the prompts when it is first asked for."""
        if self.filled is None:
            self.filled = self._prefilled()
        return self.filled

    def ready(self) -> None:
        """Read the prompts, unless they are."""
        _ = self.cache

    def within_context(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> Sequence[int]:
        """Nothing before the target has read a token, nothing beyond the head's context."""
        self._note(sequences)
        able = [limit if len(text) > 1 else 0 for text, limit in zip(sequences, limits, strict=True)]
        return within(self.context, sequences, able)

    def begin(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Enter what the target has read since; the last entry again where that is nothing."""
        ends = [len(text) - 1 for text in sequences]
        begins = [max(0, min(entered, end - 1)) for entered, end in zip(self.entered, ends, strict=True)]
        n = max(end - begin for begin, end in zip(begins, ends, strict=True))
        while n > self.stepper.most:  # another drafter stood in: a part of it first
            n -= self.stepper.most
            stops = [max(begin, end - n) for begin, end in zip(begins, ends, strict=True)]
            self._enter(sequences, begins, stops)
            begins = stops
        logits, last = self._enter(sequences, begins, ends)
        self.chunks, self.entered = [last], ends
        return logits

    def follow(self, ids: Tensor) -> Tensor:
        """Enter a drafted token with the head's own output."""
        assert self.output is not None, "a draft begins first"
        at = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        logits, self.output = self.stepper(ids, self.output, at, self.cache, true=False)
        self.cache.lengths = [length + 1 for length in self.cache.lengths]
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Of everything."""
        if self.filled:
            lengths = [self.filled.lengths[row] for row in rows]
            self.filled = self.stepper.cache(self.filled, rows, lengths, self.filled.capacity)
        self.prompts = [self.prompts[row] for row in rows]
        self.chunks = [chunk.keep(rows) for chunk in self.chunks]
        self.known = [self.known[row] for row in rows]
        self.entered = [self.entered[row] for row in rows]

    def _note(self, sequences: Sequence[Sequence[int]]) -> None:
        """Keep the states of the target's last call, once; none where no row will draft again."""
        ends = [len(text) - 1 for text in sequences]
        if ends == self.known or (self.context is not None and min(ends) >= self.context):
            return
        states = torch.cat([self.target.states[layer] for layer in self.reads], -1)
        self.chunks.append(_Chunk(self.target.states_from, ends, states))
        self.known = ends

    def _prefilled(self) -> RowCache:
        """All entries of the prompts but the last, eagerly; prompts that begin another one share its entries."""
        hosts, owner = shared_prefixes(self.prompts)
        cache = RowCache(1, len(hosts), self.most)
        if (width := max(map(len, self.prompts)) - 2) > 0:
            place = {tuple(prompt): row for row, prompt in enumerate(self.prompts)}
            rows = to_device([place[tuple(host)] for host in hosts], self.device)
            ids = [[*read, *[0] * (width - len(read))] for read in (host[1:-1] for host in hosts)]
            first = self.chunks[0]  # the target's call on the prompts
            states, none = first.states[rows, :width], torch.zeros_like(rows)
            self.stepper(to_device(ids, self.device), states, none, cache, true=True)
        return self.stepper.cache(cache, owner, self.entered, self.most + self.stepper.most)

    def _enter(
        self, sequences: Sequence[Sequence[int]], begins: list[int], ends: list[int]
    ) -> tuple[Tensor, _Chunk]:
        """Entries ``begins[row]`` to ``ends[row]`` with their true states, and the logits after the last of each."""
        counts = [end - begin for begin, end in zip(begins, ends, strict=True)]
        n = max(1, *counts)
        tokens = [list(text[begin + 1 : begin + 1 + n]) for text, begin in zip(sequences, begins, strict=True)]
        ids = to_device([[*row, *[0] * (n - len(row))] for row in tokens], self.device)
        chunk = _Chunk(begins, ends, self._states(begins, n))
        at = to_device([max(0, count - 1) for count in counts], self.device)
        self.cache.lengths = list(begins)
        logits, self.output = self.stepper(ids, chunk.states, at, self.cache, true=True)
        self.cache.lengths = list(ends)
        return logits, chunk

    def _states(self, begins: Sequence[int], n: int) -> Tensor:
        """[B, n, k h_t] of the n positions from ``begins``; what is not known means nothing."""
        used = [
            chunk
            for chunk in self.chunks
            if any(begin < stop for begin, stop in zip(begins, chunk.stops, strict=True))
        ]
        shifts = {begin - start for begin, start in zip(begins, used[0].starts, strict=True)} if used else set()
        if len(used) == len(shifts) == 1 and (shift := shifts.pop()) + n <= used[0].states.shape[1]:
            return used[0].states[:, shift : shift + n]
        places = [[_place(used, row, begin + j) for j in range(n)] for row, begin in enumerate(begins)]
        joined = torch.cat([chunk.states for chunk in used], 1)
        index = to_device(places, self.device).unsqueeze(-1)
        return joined.gather(1, index.expand(-1, -1, joined.shape[-1]))


def _place(chunks: Sequence[_Chunk], row: int, position: int) -> int:
    """Where among the chunks' joined entries a position of a row is; 0 where it is in none."""
    offset = 0
    for chunk in chunks:
        if position < chunk.stops[row]:
            return offset + position - chunk.starts[row]
        offset += chunk.states.shape[1]
    return 0
