"""The teacher's hidden states along fixed responses, computed once for all epochs, methods and seeds.

Scoring is most of a step's cost, and of a fixed response it never changes. What is kept is the state that the
head is applied to: d numbers a token, exact, where whole distributions would be V numbers and top-k ones biased. For a
student that reads the teacher's states these are kept too: 3 d numbers for every token of the row, its prompt's too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from specalign.errors import UserError
from specalign.files import atomic_path
from specalign.models.released import is_released
from specalign.training.rollouts import read_tensors
from specalign.training.rows import Layout, Row, lay_out
from specalign.training.scoring import observed

Reads = tuple[int, ...]
"""Layers of the teacher whose incoming states a student reads."""
TOGETHER = 8
"""Rows of one pass where many are filled on a GPU."""


@dataclass(frozen=True)
class Scored:
    """What is kept of a row."""

    states: Tensor
    """[n, d] what the head is applied to, for each scored token."""
    read: Tensor | None = None
    """[L, k * d] what enters k layers, at each token that the row's pass reads."""

    @property
    def n_bytes(self) -> int:
        """Size."""
        return self.states.nbytes + (0 if self.read is None else self.read.nbytes)

    def to(self, device: torch.device) -> Scored:
        """The same there."""
        return Scored(self.states.to(device), None if self.read is None else self.read.to(device))


class TeacherStates:
    """Scores rows with a frozen teacher, those of fixed responses at most once while ``capacity`` lasts.

    On a CPU such a row is scored on its own, so that its states do not depend on which batch asks for them first: a
    run that goes on from a checkpoint repeats an uninterrupted one bit by bit, whatever was kept. On a GPU, where
    kernels sum in no fixed order anyway, those of a batch that are not known yet are scored in one pass.

    States are kept in main memory, or with ``folder`` as one file a row below it, for later commands too.
    ``folder`` must be named after everything that determines the states but the row. Where ``capacity`` bytes
    are kept (an earlier command's files included), further rows are computed each time and none is dropped:
    epochs go round, so dropping the least recently used one would drop each just before it is needed.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        capacity: int,
        folder: Path | None = None,
        *,
        device: torch.device | None = None,
    ) -> None:
        self.teacher = teacher
        self.capacity = capacity
        self.folder = folder
        self.kept: dict[tuple[Row, Reads], Scored] = {}
        self.device = device or teacher.device
        """Where states are handed out, be the teacher there or released."""
        self.together = self.device.type == "cuda"
        files = [] if folder is None else folder.glob("*.safetensors")
        self.n_bytes = sum(file.stat().st_size for file in files)

    def of(self, rows: Sequence[Row], *, packed: bool) -> Tensor:
        """[N, d] at the predictors of ``lay_out(rows, packed=packed)``, in its order."""
        return torch.cat([scored.states for scored in self._all(rows, packed, ())])

    def missing(self, rows: Sequence[Row]) -> list[Row]:
        """Those fixed ones, each once, whose states are not kept."""
        fixed = (row for row in dict.fromkeys(rows) if is_fixed(row))
        return [row for row in fixed if self._find(row, ()) is None]

    def fill(self, rows: Sequence[Row], advance: Callable[[int], None] = lambda n: None) -> None:
        """Keep the states of fixed rows that are not known yet; ``advance`` is told the tokens done.

        What is kept of an interrupted call on disk is found by the next one.
        """
        ordered = sorted(rows, key=lambda row: len(row.trunk))
        size = TOGETHER if self.together else 1
        for begin in range(0, len(ordered), size):
            group = ordered[begin : begin + size]
            self._all(group, True, ())
            advance(sum(row.n_tokens for row in group))

    def observed(
        self, rows: Sequence[Row], layout: Layout, *, packed: bool, reads: Reads
    ) -> tuple[Layout, Tensor]:
        """The same, and ``layout``, that of the rows, with what a head reads of ``reads`` in it.

        A head's rows have no branches, so that each is a row of the layout.
        """
        found = self._all(rows, packed, reads)
        read = [scored.read for scored in found if scored.read is not None]
        if reads:
            layout = replace(layout, read=pad_sequence(read, batch_first=True))
        return layout, torch.cat([scored.states for scored in found])

    @torch.no_grad()
    def _all(self, rows: Sequence[Row], packed: bool, reads: Reads) -> list[Scored]:
        fresh = [row for row in rows if not is_fixed(row)]
        computed = iter(self._score(fresh, packed, reads)) if fresh else iter(())
        fixed = self._fixed([row for row in dict.fromkeys(rows) if is_fixed(row)], reads)
        return [fixed[row] if is_fixed(row) else next(computed) for row in rows]

    def _fixed(self, rows: Sequence[Row], reads: Reads) -> dict[Row, Scored]:
        """The states of each, computed where they are not kept."""
        found = {row: self._find(row, reads) for row in rows}
        unknown = [row for row, scored in found.items() if scored is None]
        for group in [unknown] if self.together and unknown else [[row] for row in unknown]:
            for row, scored in zip(group, self._score(group, True, reads), strict=True):
                self._keep(row, reads, scored)
                found[row] = scored
        return {row: kept.to(self.device) for row, kept in found.items() if kept is not None}

    def _find(self, row: Row, reads: Reads) -> Scored | None:
        if self.folder is None:
            return self.kept.get((row, reads))
        return _read(_file(self.folder, row, reads), row)

    def _keep(self, row: Row, reads: Reads, found: Scored) -> None:
        if self.n_bytes + found.n_bytes > self.capacity:
            return
        self.n_bytes += found.n_bytes
        if self.folder is None:
            self.kept[row, reads] = found.to(torch.device("cpu"))
            return
        tensors = {"states": found.states.contiguous()}
        if found.read is not None:
            tensors["read"] = found.read.contiguous()
        with atomic_path(_file(self.folder, row, reads)) as partial:
            save_file(tensors, partial)

    def _score(self, rows: Sequence[Row], packed: bool, reads: Reads) -> list[Scored]:
        if is_released(self.teacher):
            raise UserError(
                "states of the teacher are missing that were kept before it was released (teacher.offload): give the "
                "same command again, which computes them"
            )
        layout = lay_out(rows, packed=packed, device=self.device)
        layout, final = observed(self.teacher, layout, reads)
        parts = final.split([row.n_tokens for row in rows])
        if layout.read is None:
            return [Scored(part) for part in parts]
        lengths = [len(row.trunk) - 1 for row in rows]
        return [
            Scored(part, read[:length].clone())
            for part, read, length in zip(parts, layout.read, lengths, strict=True)
        ]


def is_fixed(row: Row) -> bool:
    """Whether the row will be met again: its response is data, not a rollout."""
    return not row.branches and not row.on_policy


def _file(folder: Path, row: Row, reads: Reads) -> Path:
    text = repr((row.trunk, row.n_prompt, row.encoder, *row.spans, *([reads] if reads else [])))
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def _read(path: Path, row: Row) -> Scored | None:
    tensors = read_tensors(path)
    if not tensors or len(tensors["states"]) != row.n_tokens:
        return None
    return Scored(tensors["states"], tensors.get("read"))
