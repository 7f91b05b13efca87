"""What a run's generations were: `records.jsonl`, one :class:`GenerationRecord` a line, in execution order.

Units stand in the names: ``_s`` seconds, ``n_`` counts. Notation as in ``specalign/__init__.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

SCHEMA_VERSION = 2
"""Of records and results. 2: records have ``begun_at``, ``call_s`` and ``chain``. Files of version 1 are read."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class DraftedBy:
    """Which part of a hybrid drafted in each step, column by column as in :class:`StepTrace`.

    With the counts of the steps it is all that later requests of the row begin from.
    """

    part: list[int]
    """0-based number of the part; -1 where nothing was drafted."""
    classes: list[list[int]]
    """At each examined position the class of its confidence, 0 to 4 (fifths)."""
    price: list[float]
    """Of trials, in which a part that promised nothing drafted a token: tokens that it was expected to cost; else 0."""
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class StepTrace:
    """The decoding steps of one generation, one entry a step (that is, a target call), column by column.

    Plain decoding has the same columns with nothing drafted. In every step
    ``n_accepted <= n_examined <= n_drafted`` and ``n_emitted`` is ``n_accepted`` plus the target's own
    token (bonus or correction), unless the step ended the sequence before that token.
    """

    n_drafted: list[int]
    """Tokens that the drafter proposed."""
    n_examined: list[int]
    """Drafted tokens that the rule looked at: up to and including the first rejected one."""
    n_accepted: list[int]
    """Drafted tokens that were accepted and emitted."""
    n_emitted: list[int]
    """Tokens that the step added to the output."""
    overlap: list[list[float]]
    """Sum over the vocabulary of min(p, q) at each examined position, at the temperature used."""
    draft_s: list[float]
    """Seconds in the drafter."""
    verify_s: list[float]
    """Seconds in the target's forward call."""
    rest_s: list[float]
    """Seconds in everything else: sampling, the rule, cache bookkeeping, Python."""
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class DraftCounts:
    """What a serving engine counts, of one generation or of many, where it gives no trace of its steps.

    Tokens that were accepted in the last step but lie beyond the end of the output are counted too.
    """

    n_drafts: int
    """Drafts: steps in which something was drafted."""
    n_drafted: int
    """Drafted tokens, those after a rejection included."""
    n_accepted: int
    accepted_by_position: list[int]
    """Drafts whose first i tokens were accepted, i = 1..gamma."""
    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class GenerationRecord:
    """One generation: what was asked, what came out, and where the time went."""

    method: str
    """Row label: "target" for plain decoding, else the drafter's name."""
    prompt_id: str
    category: str
    repeat: int
    """0-based index of this repetition of (prompt, method, temperature, gamma)."""
    order: int
    """0-based position in the run's (randomised) execution order."""
    temperature: float
    top_k: int
    """0: no top-k filter."""
    top_p: float
    """1: no top-p filter."""
    gamma: int
    """Draft length, the most where it is adaptive; 0 for plain decoding."""
    rule: str
    """Verification rule; "none" for plain decoding."""
    lossless: bool
    seed: int
    n_prompt_tokens: int
    status: Literal["ok", "failed"]
    error: str = ""
    """Why it failed; a failed generation has no steps and enters no mean."""
    token_ids: list[int] = field(default_factory=list)
    """The new tokens, without the prompt; a final end-of-sequence token is included."""
    finish_reason: Literal["eos", "length", ""] = ""
    text: str = ""
    reference: str = ""
    """The data set's reference; empty where there is none."""
    steps: StepTrace | None = None
    """None where it failed, and from an engine that gives no trace of its steps."""
    counts: DraftCounts | None = None
    """Such an engine's counters."""
    n_last: int | None = None
    """Tokens of its last step that are in the output; None where the stream did not show the steps one by one."""
    prefill_s: float = 0.0
    """Seconds for the prompt: target and drafter prefill, up to the first token."""
    decode_s: float = 0.0
    """Seconds from the first token to the last."""
    wall_s: float = 0.0
    """Seconds for the whole call; prefill_s + decode_s and what little lies between."""
    adaptive: bool = False
    """Whether each draft ended where a further token was not expected to pay."""
    hybrid: bool = False
    """Whether several drafters take turns under this name."""
    busy: float | None = None
    """Share of the processor's time that other processes took meanwhile, 0 to 1; None where that is not known."""
    begun_at: float | None = None
    """Seconds since 1970 when the call began."""
    turn: int = 0
    """0-based turn of a conversation; its prompt has what was decoded in the turns before."""
    call_s: float | None = None
    """Seconds of the call by a clock outside the engine; wall_s and what little lies around it."""
    drafted_by: DraftedBy | None = None
    """Of its steps, where several drafters take turns and any could draft."""
    schema_version: int = SCHEMA_VERSION
    chain: str = ""
    """Hash of this line and all before it (specalign/chain.py)."""
    __pydantic_config__ = _STRICT


RecordKey = tuple[str, str, float, int, int, int]
"""(prompt, method, temperature, gamma, repeat, turn)."""


def record_key(record: GenerationRecord) -> RecordKey:
    """What identifies a generation in its run."""
    return record.prompt_id, record.method, record.temperature, record.gamma, record.repeat, record.turn
