"""The teacher's hidden states along fixed responses, computed once for all epochs, methods and seeds.

Scoring is most of a step's cost, and of a fixed response it never changes. What is kept is the state that the
head is applied to: d numbers a token, exact, where whole distributions would be V numbers and top-k ones biased.
Another kind of states has a :class:`TeacherStates` of its own, with the function that computes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from specalign.errors import UserError
from specalign.files import atomic_path
from specalign.models.released import is_released
from specalign.training.rollouts import read_tensors
from specalign.training.rows import Layout, Row, lay_out
from specalign.training.scoring import states

Score = Callable[[PreTrainedModel, Layout], Tensor]
"""Teacher and layout -> [N, d], a row for each scored token."""
TOGETHER = 8
"""Rows of one pass where many are filled on a GPU."""


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
        score: Score = states,
    ) -> None:
        self.teacher = teacher
        self.capacity = capacity
        self.folder = folder
        self.score = score
        self.kept: dict[Row, Tensor] = {}
        self.device = device or teacher.device
        """Where states are handed out, be the teacher there or released."""
        self.together = self.device.type == "cuda"
        files = [] if folder is None else folder.glob("*.safetensors")
        self.n_bytes = sum(file.stat().st_size for file in files)

    @torch.no_grad()
    def of(self, rows: Sequence[Row], *, packed: bool) -> Tensor:
        """[N, d] at the predictors of ``lay_out(rows, packed=packed)``, in its order."""
        fresh = [row for row in rows if not is_fixed(row)]
        computed = iter(self._score(fresh, packed)) if fresh else iter(())
        fixed = self._fixed([row for row in dict.fromkeys(rows) if is_fixed(row)])
        return torch.cat([fixed[row] if is_fixed(row) else next(computed) for row in rows])

    def missing(self, rows: Sequence[Row]) -> list[Row]:
        """Those fixed ones, each once, whose states are not kept."""
        fixed = (row for row in dict.fromkeys(rows) if is_fixed(row))
        return [row for row in fixed if self._find(row) is None]

    def fill(self, rows: Sequence[Row], advance: Callable[[int], None] = lambda n: None) -> None:
        """Keep the states of fixed rows that are not known yet; ``advance`` is told the tokens done.

        What is kept of an interrupted call on disk is found by the next one.
        """
        ordered = sorted(rows, key=lambda row: len(row.trunk))
        size = TOGETHER if self.together else 1
        for begin in range(0, len(ordered), size):
            group = ordered[begin : begin + size]
            self._fixed(group)
            advance(sum(row.n_tokens for row in group))

    def _fixed(self, rows: Sequence[Row]) -> dict[Row, Tensor]:
        """The states of each, computed where they are not kept."""
        found = {row: self._find(row) for row in rows}
        unknown = [row for row, states_ in found.items() if states_ is None]
        for group in [unknown] if self.together and unknown else [[row] for row in unknown]:
            for row, scored in zip(group, self._score(group, packed=True), strict=True):
                self._keep(row, scored)
                found[row] = scored
        return {row: kept.to(self.device) for row, kept in found.items() if kept is not None}

    def _find(self, row: Row) -> Tensor | None:
        if self.folder is None:
            return self.kept.get(row)
        return _read(_file(self.folder, row), row.n_tokens)

    def _keep(self, row: Row, found: Tensor) -> None:
        if self.n_bytes + found.nbytes > self.capacity:
            return
        self.n_bytes += found.nbytes
        if self.folder is None:
            self.kept[row] = found.cpu()
            return
        with atomic_path(_file(self.folder, row)) as partial:
            save_file({"states": found.contiguous()}, partial)

    def _score(self, rows: Sequence[Row], packed: bool) -> tuple[Tensor, ...]:
        if is_released(self.teacher):
            raise UserError(
                "states of the teacher are missing that were kept before it was released (teacher.offload): give the "
                "same command again, which computes them"
            )
        layout = lay_out(rows, packed=packed, device=self.device)
        return self.score(self.teacher, layout).split([row.n_tokens for row in rows])


def is_fixed(row: Row) -> bool:
    """Whether the row will be met again: its response is data, not a rollout."""
    return not row.branches and not row.on_policy


def _file(folder: Path, row: Row) -> Path:
    text = repr((row.trunk, row.n_prompt, row.encoder, *row.spans))
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def _read(path: Path, n_tokens: int) -> Tensor | None:
    tensors = read_tensors(path)
    return tensors["states"] if tensors and len(tensors["states"]) == n_tokens else None
