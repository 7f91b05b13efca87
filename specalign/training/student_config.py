"""Where the drafter starts from: the part of a recipe that says what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specalign.config import STRICT
from specalign.errors import UserError
from specalign.ranges import (
    Count,
    CountOrZero,
    Depth,
    DepthOrZero,
    DraftOrZero,
    Layers,
    NotNegative,
    Share,
    ShareAbove0,
    Unroll,
)

Kind = Literal["model", "slice", "head"]


@dataclass(frozen=True)
class StudentConfig:
    """Where the drafter starts from."""

    model: str = ""
    """An existing smaller model (named like the teacher), or a head; empty: made of the teacher."""
    kind: Kind | None = None
    """head: EAGLE-3, one layer that reads the teacher's states; none: a model where one is named, else a slice."""
    layers: Layers = ()
    """Teacher layers of the slice, first and last included; empty: n_layers of them, chosen by pick."""
    n_layers: Depth = 4
    """Layers of the slice where they are not listed."""
    n_encoder_layers: DepthOrZero = 0
    """Encoder layers of an encoder-decoder teacher's slice; 0: all of them, since most of the cost is the decoder."""
    pick: Literal["ends", "even", "influence"] = "ends"
    """Which layers: half from either end, evenly spread, or those that turn the hidden state most (a short probe)."""
    start: Literal["aligned", "slice", "random"] | None = None
    """aligned: first fitted to the teacher in closed form; slice: as it is cut; random: a head's layer drawn, its
    embedding and output the teacher's; none: as the method says (aligned)."""
    align_tokens: Count = 20_000
    """Tokens of teacher responses, prompts included, that the closed-form fit sees."""
    ridge: NotNegative = 1e-3
    """Ridge of the fit, relative to the mean of the Gram matrix's diagonal."""
    draft_vocabulary: CountOrZero = 0
    """Most frequent ids that the drafter's head keeps; 0: all."""
    parallel: DraftOrZero = 0
    """Most tokens that it drafts in one call, all but the first from mask tokens (PARD); 0 or 1: one token a call."""
    parallel_keep: ShareAbove0 = 0.7
    """parallel: the k-th mask tokens are trained at this share of the positions, to the power k."""
    parallel_floor: Share = 0.2
    """parallel: and at this share of them at least."""
    reads: Layers = ()
    """head: three layers of the teacher whose incoming states it reads, rising; the number of layers is what leaves the
    last one; empty: 2, the middle, and that."""
    unroll: Unroll = 2
    """head: steps of a draft that are trained, each on the output of the step before."""
    decay: ShareAbove0 = 0.8
    """head: weight of a step's loss, relative to that of the step before."""
    __pydantic_config__ = STRICT

    @property
    def drafts_in_parallel(self) -> bool:
        """Whether mask tokens are trained."""
        return self.parallel > 1

    @property
    def is_head(self) -> bool:
        """Whether it reads the teacher's states."""
        return self.kind == "head"

    def require_consistent(self) -> None:
        """Raise UserError for fields that do not go together."""
        if self.kind == "model" and not self.model:
            raise UserError("student.kind = model needs student.model: the model to start from")
        if self.kind == "slice" and self.model:
            raise UserError(f"student.kind = slice is made of the teacher; student.model names {self.model!r}")
        if self.is_head and self.start == "slice":
            raise UserError("a head is not cut out of the teacher: student.start is aligned or random")
        if self.is_head and self.drafts_in_parallel:
            raise UserError("student.parallel is for models: a head drafts a token a call")
        if not self.is_head and self.start == "random":
            raise UserError("student.start = random is for student.kind = head")
        if not self.is_head and self.reads:
            raise UserError("student.reads is for student.kind = head")
