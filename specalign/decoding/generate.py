"""Plain and speculative decoding: one driver, one record, one ruler.

Notation of Leviathan et al. 2023 (arXiv:2211.17192): target p, drafter q, draft length gamma. See
docs/decoding.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.decoding.clock import Clock
from specalign.decoding.draft_length import Origin
from specalign.decoding.drafters import Drafter, Drafting, Undrafted
from specalign.decoding.hybrid import drafting_models
from specalign.decoding.judge import Judge
from specalign.decoding.options import Given, Options
from specalign.decoding.probe import require_decodable
from specalign.decoding.records import Generation, Growing, StepMarks, emit, merged, timed
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session, decoder_sequences, rooms
from specalign.decoding.stepper import Stepper, make_stepper
from specalign.decoding.transfer import to_device
from specalign.decoding.verification import RULES
from specalign.models.head_fit import require_head_fits
from specalign.models.probe import name_of
from specalign.models.properties import context_limit, eos_ids, require_unscaled

TokenIds = Sequence[int] | Sequence[Sequence[int]] | Tensor | Sequence[Tensor]
"""One prompt, or a batch of prompts: a tensor [T] or [B, T], as a tokenizer returns it, or lists of any lengths."""


@dataclass(frozen=True)
class _Settings:
    """What was asked for, as the steps need it."""

    gamma: int
    judge: Judge
    max_new_tokens: int
    eos: frozenset[int]
    written: Sequence[Sequence[int]]


@torch.inference_mode()
def generate(
    target: PreTrainedModel | Stepper,
    drafter: Drafter | None,
    input_ids: TokenIds,
    **options: Unpack[Given],
) -> Generation:
    """Decode after each prompt, speculatively with ``drafter``, plainly with None.

    ``input_ids`` is one prompt or a batch of prompts of any lengths, as lists or a tensor without padding (an
    encoder-decoder model's encoder reads them; with a drafter its rows are decoded one at a time). The output
    follows the target's distribution exactly, whatever the drafter; at temperature 0 it is the target's greedy
    output. :class:`Options` says what the options are and what holds where one is not given.

    Raises ValueError for an empty prompt, a prompt that fills the context, ``input_ids`` that are not whole numbers
    in one or two dimensions, ``head_ids`` together with a drafter or a Stepper, ``written`` where it does not
    belong, or numbers out of range; UserError for an unknown rule, and for a model whose positions are scaled by
    the length of the text beyond some length that the request exceeds.
    """
    stepper, settings = _prepared(target, drafter, Options(**options))
    parts = []
    for prompts, part in _batches(stepper, drafter, _as_rows(input_ids), settings):
        request = _begin(stepper, drafter, prompts, part)
        for _ in _steps(request):
            pass
        parts.append(_finished(request))
    return merged(parts)


@torch.inference_mode()
def stream(
    target: PreTrainedModel | Stepper,
    drafter: Drafter | None,
    input_ids: TokenIds,
    **options: Unpack[Given],
) -> Iterator[list[list[int]]]:
    """:func:`generate`, step by step: yields the new ids of each row, none for a row that is finished.

    The lists add up to ``generate(...).token_ids``. With a drafter, rows of an encoder-decoder model come one after
    the other.
    """
    stepper, settings = _prepared(target, drafter, Options(**options))
    rows = _as_rows(input_ids)
    first = 0
    for prompts, part in _batches(stepper, drafter, rows, settings):
        request = _begin(stepper, drafter, prompts, part)
        shown = [0] * len(prompts)
        for _ in _steps(request):
            fresh: list[list[int]] = [[] for _ in rows]
            for place, row in enumerate(request.rows):
                fresh[first + place], shown[place] = row.new[shown[place] :], len(row.new)
            yield fresh
        first += len(prompts)


def _prepared(
    target: PreTrainedModel | Stepper, drafter: Drafter | None, options: Options
) -> tuple[Stepper, _Settings]:
    """What steps the target, and what was asked for, checked."""
    if isinstance(target, Stepper) and options.head_ids is not None:
        raise ValueError("a Stepper has its head already: head_ids restricts a model's")
    names = _decodable(target.model if isinstance(target, Stepper) else target, drafting_models(drafter))
    stepper = target if isinstance(target, Stepper) else make_stepper(target, ids=options.head_ids)
    if drafter and stepper.head.ids is not None:
        raise ValueError("a target that is restricted to head_ids decodes plainly, without a drafter")
    if options.written and (drafter or not stepper.model.config.is_encoder_decoder):
        raise ValueError("written is for an encoder-decoder model that decodes plainly")
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    return stepper, _Settings(
        options.gamma if drafter else 0,
        Judge(sampling, RULES[options.rule], options.generator, options.margins, names),
        options.max_new_tokens,
        frozenset(eos_ids(stepper.model) if options.eos is None else options.eos),
        options.written,
    )


def _decodable(target: PreTrainedModel, drafting: Sequence[PreTrainedModel]) -> tuple[str, str]:
    """What errors call target and drafter, both tried on a few tokens."""
    for model in (target, *drafting):
        require_decodable(model)
        require_head_fits(model, target)
    return f"the target, {name_of(target)}", f"the drafter, {' or '.join(map(name_of, drafting))}"


def _batches(
    target: Stepper, drafter: Drafter | None, prompts: list[list[int]], settings: _Settings
) -> list[tuple[list[list[int]], _Settings]]:
    """Prompts that are decoded together: all, but each alone where an encoder-decoder model's rows grow unevenly.

    That is with a drafter, and where they go on from texts of different lengths and positions are absolute (BART): the
    padding before the shorter ones would move them.
    """
    absolute = context_limit(target.model) is not None and len(set(map(len, settings.written))) > 1
    if not target.model.config.is_encoder_decoder or not (drafter or absolute):
        return [(prompts, settings)]
    parts = [settings.written[row : row + 1] for row in range(len(prompts))]
    return [([prompt], replace(settings, written=part)) for prompt, part in zip(prompts, parts, strict=True)]


@dataclass
class _Request:
    """A batch that is being decoded."""

    session: Session
    drafting: Drafting
    rows: list[Growing]
    settings: _Settings
    clock: Clock
    begin: float
    prefilled: float


def _begin(target: Stepper, drafter: Drafter | None, prompts: list[list[int]], settings: _Settings) -> _Request:
    """Prefill target and drafter."""
    clock = Clock(target.device)
    begin = clock.settle()
    rows = _new_rows(target.model, prompts, settings)
    longest = max(len(row.sequence) for row in rows)
    n_new = max(len(row.sequence) + row.n_left for row in rows) - longest + settings.gamma + 1
    reads = drafter.reads if drafter else ()
    session = Session.start(target, prompts, n_new, settings.written, reads)
    drafting: Drafting = Undrafted(target.device)
    if drafter:
        drafting = drafter.start(prompts, n_new, settings.judge.sampling, session)
        drafting.ready()
    return _Request(session, drafting, rows, settings, clock, begin, prefilled=clock.settle())


def _steps(request: _Request) -> Iterator[None]:
    """Decode, and pause after each step. Finished rows leave the batch once they are half of it."""
    active = request.rows
    while unfinished := [row for row in active if not row.finish]:
        if 2 * len(unfinished) <= len(active):
            places = [place for place, row in enumerate(active) if not row.finish]
            request.session.keep(places)
            request.drafting.keep(places)
            active = unfinished
        _step(request, active)
        yield


def _finished(request: _Request) -> Generation:
    """The record; only now are the device's times read."""
    clock, rows = request.clock, request.rows
    end = clock.settle()
    return Generation(
        [row.new for row in rows],
        [row.finish for row in rows],
        [[timed(clock, step) for step in row.steps] for row in rows],
        prefill_s=request.prefilled - request.begin,
        decode_s=end - request.prefilled,
        wall_s=end - request.begin,
    )


def _step(request: _Request, rows: list[Growing]) -> None:
    """Algorithm 1 of Leviathan et al.: draft gamma tokens from q, score them with p at once, keep a prefix."""
    session, settings, clock = request.session, request.settings, request.clock
    started = clock.mark()
    sequences = [row.sequence for row in rows]
    last = to_device([sequence[-1:] for sequence in sequences], session.model.device)
    limits = [0 if row.finish else min(settings.gamma, row.n_left - 1) for row in rows]
    draft = request.drafting.draft(sequences, limits, settings.judge.generator)  # x_1, ..., x_gamma ~ q
    drafted = clock.mark()

    logits = session.extend(torch.cat([last, draft.ids], 1))  # p_1, ..., p_gamma+1 in one call
    verified = clock.mark()

    outcomes = settings.judge(logits, draft, session.head.ids)
    origins: Sequence[Origin | None] = draft.origins or [None] * len(rows)
    taken = [
        (row, outcome, emit(row, outcome, settings.eos), origin)
        for row, outcome, origin in zip(rows, outcomes, origins, strict=True)
        if not row.finish
    ]
    session.rollback([len(row.sequence) - 1 for row in rows])
    marks = started, drafted, verified, clock.mark()
    for row, outcome, counts, origin in taken:
        overlap, margins = tuple(outcome.overlap[: counts[1]]), tuple(outcome.margins[: counts[3]])
        examined = origin and replace(origin, classes=origin.classes[: counts[1]])
        row.steps.append(StepMarks(counts, overlap, margins, marks, examined))


def _new_rows(target: PreTrainedModel, prompts: list[list[int]], settings: _Settings) -> list[Growing]:
    sequences = decoder_sequences(target, prompts, settings.written)
    require_unscaled(target, max(map(len, sequences)) + settings.max_new_tokens)
    available = rooms(target, sequences)
    if available is None:
        return [Growing(sequence, settings.max_new_tokens) for sequence in sequences]
    if min(available) < 1:
        raise ValueError(f"a prompt of {max(map(len, sequences))} tokens fills the target's context")
    limits = [min(settings.max_new_tokens, free) for free in available]
    return [Growing(sequence, n_left) for sequence, n_left in zip(sequences, limits, strict=True)]


def _as_rows(input_ids: TokenIds) -> list[list[int]]:
    """One prompt or a batch of them, as lists of ints."""
    whole = _plain(input_ids)
    rows: list[Any] = [_plain(row) for row in whole] if isinstance(whole, list) else [None]
    batch: list[Any] = [rows] if not any(isinstance(row, list) for row in rows) else rows
    if not batch or not all(batch):
        raise ValueError("every prompt needs at least one token")
    if not all(isinstance(row, list) and all(type(id_) is int for id_ in row) for row in batch):
        raise ValueError(
            "input_ids must be one prompt's token ids or a batch of prompts: lists, or a tensor of one or two "
            "dimensions, of whole numbers"
        )
    return batch


def _plain(ids: Any) -> Any:
    """Tensors, arrays and tuples as lists, a scalar of theirs as a number."""
    if hasattr(ids, "tolist"):
        return ids.tolist()
    return list(ids) if isinstance(ids, Sequence) and not isinstance(ids, str) else ids
