"""Plain and speculative decoding: one driver, one record, one ruler.

Notation of Leviathan et al. 2023 (arXiv:2211.17192): target p, drafter q, draft length gamma. See
docs/decoding.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from specalign.decoding.clock import Clock, Mark
from specalign.decoding.drafters import Draft, Drafter, Drafting, Undrafted
from specalign.decoding.sampling import Sampling, probabilities, sample
from specalign.decoding.session import Session, decoder_sequences, room
from specalign.decoding.stepper import Stepper, make_stepper
from specalign.decoding.verification import RULES, Rule, greedy
from specalign.errors import unknown
from specalign.models.properties import eos_ids


@dataclass(frozen=True)
class Step:
    """One target call of one row; counts as in ``specalign.results.StepTrace``, times those of the batch."""

    n_drafted: int
    n_examined: int
    n_accepted: int
    n_emitted: int
    overlap: tuple[float, ...]
    """sum_v min(p, q) at each examined position."""
    draft_s: float
    verify_s: float
    rest_s: float


@dataclass(frozen=True)
class Generation:
    """What :func:`generate` returns; lists have one entry a row."""

    token_ids: list[list[int]]
    """New tokens, a final end-of-sequence token included."""
    finish_reason: list[str]
    """``eos`` or ``length``."""
    steps: list[list[Step]]
    prefill_s: float
    decode_s: float
    wall_s: float


@dataclass(frozen=True)
class _Settings:
    """What was asked for."""

    gamma: int
    sampling: Sampling
    rule: Rule
    max_new_tokens: int
    eos: frozenset[int]
    generator: torch.Generator | None


@dataclass
class _Row:
    """One row while it is being decoded."""

    sequence: list[int]
    """What the decoder has read, and the last token, which it has not."""
    n_left: int
    """Tokens that may still be emitted."""
    new: list[int] = field(default_factory=list)
    finish: str = ""
    steps: list[_StepMarks] = field(default_factory=list)


@dataclass(frozen=True)
class _StepMarks:
    """A step whose times are not read yet."""

    counts: tuple[int, int, int, int]
    overlap: tuple[float, ...]
    marks: tuple[Mark, Mark, Mark, Mark]


@torch.inference_mode()
def generate(
    target: PreTrainedModel | Stepper,
    drafter: Drafter | None,
    input_ids: Sequence[int] | Sequence[Sequence[int]],
    *,
    gamma: int = 4,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    rule: str = "token",
    eos: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    head_ids: Tensor | None = None,
) -> Generation:
    """Decode up to ``max_new_tokens`` after each prompt, speculatively with ``drafter``, plainly with None.

    ``input_ids`` is one prompt or a batch of prompts of any lengths (an encoder-decoder model's encoder reads
    them, one at a time). The output follows the target's distribution exactly, whatever the drafter; at
    temperature 0 it is the target's greedy output. ``eos`` defaults to the target's own end-of-sequence ids;
    ``head_ids`` [V'] restricts the target to some ids (a drafter with a trimmed vocabulary decoding on its
    own); a :class:`Stepper` has its head already, and may run packed or compiled. Decoding ends early where the
    target's context is full. ``generator`` lives on the target's device.

    Raises ValueError for an empty prompt, a prompt that fills the context, or numbers out of range; UserError
    for an unknown rule.
    """
    prompts = _as_rows(input_ids)
    if rule not in RULES:
        raise unknown("verification rule", rule, RULES)
    if gamma < 0 or max_new_tokens < 1:
        raise ValueError(f"need gamma >= 0 and max_new_tokens >= 1, not {gamma} and {max_new_tokens}")
    stepper = target if isinstance(target, Stepper) else make_stepper(target, ids=head_ids)
    model = stepper.model
    settings = _Settings(
        gamma if drafter else 0,
        Sampling(temperature, top_k, top_p),
        RULES[rule],
        max_new_tokens,
        frozenset(eos_ids(model) if eos is None else eos),
        generator,
    )
    batches = [[prompt] for prompt in prompts] if model.config.is_encoder_decoder else [prompts]
    return _merged([_generate_batch(stepper, drafter, batch, settings) for batch in batches])


def _generate_batch(
    target: Stepper, drafter: Drafter | None, prompts: list[list[int]], settings: _Settings
) -> Generation:
    clock = Clock(target.device)
    begin = clock.settle()
    rows = _new_rows(target.model, prompts, settings.max_new_tokens)
    n_new = max(row.n_left for row in rows) + settings.gamma + 1
    session = Session.start(target, prompts, n_new)
    drafting: Drafting = Undrafted(target.device)
    if drafter:
        drafting = drafter.start(prompts, n_new, settings.sampling, session)
    prefilled = clock.settle()

    active = rows
    while unfinished := [row for row in active if not row.finish]:
        if 2 * len(unfinished) <= len(active):
            places = [place for place, row in enumerate(active) if not row.finish]
            session.keep(places)
            drafting.keep(places)
            active = unfinished
        _step(session, drafting, active, settings, clock)
    end = clock.settle()
    return Generation(
        [row.new for row in rows],
        [row.finish for row in rows],
        [[_timed(clock, step) for step in row.steps] for row in rows],
        prefill_s=prefilled - begin,
        decode_s=end - prefilled,
        wall_s=end - begin,
    )


def _step(session: Session, drafting: Drafting, rows: list[_Row], settings: _Settings, clock: Clock) -> None:
    """Algorithm 1 of Leviathan et al.: draft gamma tokens from q, score them with p at once, keep a prefix."""
    started = clock.mark()
    sequences = [row.sequence for row in rows]
    limits = [0 if row.finish else min(settings.gamma, row.n_left - 1) for row in rows]
    draft = drafting.draft(sequences, limits, settings.generator)  # x_1, ..., x_gamma ~ q
    drafted = clock.mark()

    last = torch.tensor([sequence[-1:] for sequence in sequences], device=session.model.device)
    logits = session.extend(torch.cat([last, draft.ids], 1))  # p_1, ..., p_gamma+1 in one call
    verified = clock.mark()

    taken = []
    for row, outcome in zip(rows, _verify(logits, draft, session, settings), strict=True):
        if not row.finish:
            taken.append((row, _emit(row, outcome, settings.eos), outcome.overlap))
    session.rollback([len(row.sequence) - 1 for row in rows])
    end = clock.mark()
    for row, counts, overlap in taken:
        row.steps.append(_StepMarks(counts, tuple(overlap[: counts[1]]), (started, drafted, verified, end)))


@dataclass(frozen=True)
class _Outcome:
    """What the rule decided for one row."""

    drafted: list[int]
    n_accepted: int
    next_token: int
    overlap: list[float]


def _verify(logits: Tensor, draft: Draft, session: Session, settings: _Settings) -> list[_Outcome]:
    """Apply the rule to every row; the one place of a step that waits for the device."""
    sampling, generator = settings.sampling, settings.generator
    if draft.ids.shape[1] == 0:
        chosen = (
            logits[:, 0].argmax(-1)
            if sampling.greedy
            else sample(probabilities(logits[:, 0], sampling), generator)
        )
        return [_Outcome([], 0, token, []) for token in _vocabulary_ids(session, chosen).tolist()]
    decided: list[Tensor] = []
    overlaps = []
    best = logits.argmax(-1) if sampling.greedy else None
    for row, count in enumerate(draft.counts):
        ids = draft.ids[row, :count]
        if best is not None:
            decided += greedy(best[row, : count + 1], ids)
            overlaps.append((best[row, :count] == ids).float())
            continue
        p = probabilities(logits[row, : count + 1], sampling)
        q = functional.one_hot(ids, p.shape[-1]).to(p.dtype) if draft.q is None else draft.q[row, :count]
        decided += settings.rule(p, q, ids, generator)
        overlaps.append(torch.minimum(p[:count], q).sum(-1))
    values = torch.stack(decided).view(-1, 2).tolist()
    shared, drafted = torch.cat(overlaps).tolist(), draft.ids.tolist()
    outcomes = []
    for row, count in enumerate(draft.counts):
        n_accepted, next_token = values[row]
        outcomes.append(_Outcome(drafted[row][:count], n_accepted, next_token, shared[:count]))
        shared = shared[count:]
    return outcomes


def _emit(row: _Row, outcome: _Outcome, eos: frozenset[int]) -> tuple[int, int, int, int]:
    """Append the accepted tokens and the target's own; stop at the end of the sequence. Returns the counts."""
    tokens = [*outcome.drafted[: outcome.n_accepted], outcome.next_token]
    end = next((place for place, token in enumerate(tokens) if token in eos), None)
    if end is not None:
        tokens, row.finish = tokens[: end + 1], "eos"
    row.sequence += tokens
    row.new += tokens
    row.n_left -= len(tokens)
    if not row.finish and row.n_left == 0:
        row.finish = "length"
    n_drafted = len(outcome.drafted)
    n_examined = min(outcome.n_accepted + 1, n_drafted, len(tokens))
    return n_drafted, n_examined, min(outcome.n_accepted, len(tokens)), len(tokens)


def _timed(clock: Clock, step: _StepMarks) -> Step:
    started, drafted, verified, end = step.marks
    return Step(
        *step.counts,
        step.overlap,
        draft_s=clock.seconds(started, drafted),
        verify_s=clock.seconds(drafted, verified),
        rest_s=clock.seconds(verified, end),
    )


def _vocabulary_ids(session: Session, rows: Tensor) -> Tensor:
    """Ids of the chosen rows of the target's head."""
    return rows if session.head.ids is None else session.head.ids[rows]


def _new_rows(target: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int) -> list[_Row]:
    sequences = decoder_sequences(target, prompts)
    available = room(target, sequences)
    if available is not None and available < 1:
        raise ValueError(f"a prompt of {max(map(len, prompts))} tokens fills the target's context")
    n_left = max_new_tokens if available is None else min(max_new_tokens, available)
    return [_Row(sequence, n_left) for sequence in sequences]


def _as_rows(input_ids: Sequence[int] | Sequence[Sequence[int]]) -> list[list[int]]:
    rows = [list(row) if isinstance(row, Sequence) else row for row in input_ids]
    batch = [rows] if rows and isinstance(rows[0], int) else rows
    if not batch or not all(batch):
        raise ValueError("every prompt needs at least one token")
    return batch  # type: ignore[return-value]


def _merged(parts: list[Generation]) -> Generation:
    """Generations made one after the other, as one batch."""
    return Generation(
        [row for part in parts for row in part.token_ids],
        [row for part in parts for row in part.finish_reason],
        [row for part in parts for row in part.steps],
        prefill_s=sum(part.prefill_s for part in parts),
        decode_s=sum(part.decode_s for part in parts),
        wall_s=sum(part.wall_s for part in parts),
    )
