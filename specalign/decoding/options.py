"""What decoding can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from specalign.decoding.verification import RULES
from specalign.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keyword arguments of ``generate`` and ``stream``, and what holds where one is not given.

    Raises ValueError for a length out of range, UserError for an unknown rule.
    """

    gamma: int = 4
    """Draft length."""
    rule: str = "token"
    """How drafts are verified, a name in ``RULES``."""
    temperature: float = 0.0
    """Of target and drafter alike; 0: greedy."""
    top_k: int = 0
    """The k likeliest tokens, of target and drafter alike; 0: all."""
    top_p: float = 1.0
    """The likeliest tokens that hold this mass, of target and drafter alike; 1: all."""
    generator: torch.Generator | None = None
    """Draws the tokens, on the target's device; None: torch's own."""
    max_new_tokens: int = 128
    """Of each row; a row ends early where the target's context is full, the others go on."""
    eos: Sequence[int] | None = None
    """Ids that end a row; None: the target's own end-of-sequence ids."""
    head_ids: Tensor | None = None
    """[V'] restricts the target to these ids: a drafter with a trimmed vocabulary that decodes on its own. A
    ``Stepper`` has its head already."""
    margins: bool = False
    """Whether to record how clear each of the target's choices was."""
    written: Sequence[Sequence[int]] = ()
    """What an encoder-decoder model's decoder has written of each row already; plain decoding goes on from there."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("verification rule", self.rule, RULES)
        if self.gamma < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"need gamma >= 0 and max_new_tokens >= 1, not {self.gamma} and {self.max_new_tokens}"
            )


class Given(TypedDict, total=False):
    """Those :class:`Options` that a caller gives: what a type checker knows the keyword arguments by."""

    gamma: int
    rule: str
    temperature: float
    top_k: int
    top_p: float
    generator: torch.Generator | None
    max_new_tokens: int
    eos: Sequence[int] | None
    head_ids: Tensor | None
    margins: bool
    written: Sequence[Sequence[int]]
