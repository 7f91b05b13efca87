"""A head's training on its own drafts, which the teacher judges: on-policy data for a drafter that writes no text.

A draft of J tokens begins with a token of the text, its anchor. Its step 0 reads the text alone, whatever is drafted.
Its step j >= 1 reads the j tokens that the head drew itself, and its q is compared with p(. | the text before the
anchor, these j tokens). That takes the place of the loss of step j at the text's token j places behind the anchor,
where the draft would have read the text, so that each step weighs what it weighs without drafts. The teacher reads the
text once more with all drafts beside it, each a branch of it (``rows.lay_out``). Nothing follows a drafted end of
sequence.

Agarwal et al. 2023 (arXiv:2306.13649), algorithm 1, with a draft as the student's sequence; Zhou et al. 2023
(arXiv:2310.08461).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.decoding.sampling import Sampling, probabilities, sample
from specalign.decoding.transfer import to_device
from specalign.losses import Objective, chunked_loss
from specalign.losses.chunked import chunk_bytes
from specalign.models.eagle import EagleHead
from specalign.models.heads import Head, common_heads, head_of
from specalign.models.properties import eos_ids
from specalign.training.memory import recomputing
from specalign.training.rollouts import FIRST
from specalign.training.rows import Branch, Layout, Row, lay_out
from specalign.training.scoring import Pair, columns_of, states
from specalign.training.setup import Run
from specalign.training.unrolling import along_drafts, along_text, begun


@dataclass(frozen=True)
class Judged:
    """The D drafted places that count, those of a draft one after the other, and what the teacher says there."""

    draft: Tensor
    """[D] which of the M drafts."""
    step: Tensor
    """[D] which step of it, 1, 2, ...: the number of drafted tokens that it has read."""
    states: Tensor
    """[D, d] what the teacher's head is applied to after the same tokens."""


@dataclass(frozen=True)
class Part:
    """K places that one call of the objective scores."""

    q: Tensor
    """[K, h] what the student's head is applied to."""
    p: Tensor | None
    """[K, d] what the teacher's head is applied to; None where the objective does not look at it."""
    labels: Tensor | None
    """[K] columns of the student's head; None where the objective does not look at them."""
    sequence_ids: Tensor
    """[K]."""
    weight: float | Tensor
    """[K] in the loss, or that of all."""


def losses_with_drafts(
    run: Run, rows: Sequence[Row], layout: Layout, known: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, int]:
    """Losses, each times its weight, whose sum is that of as many tokens as the texts have; and how many were drafted.

    ``layout`` are the texts of ``rows``, with N scored tokens and what the head reads; ``known`` [N, d] are the
    teacher's states there, None for an objective that needs none. ``generator``, on the CPU, seeds the draws.
    """
    pair, head, rollout = run.pair, run.pair.student, run.config.rollout
    assert isinstance(head, EagleHead), "models write responses, heads draft"
    sampler = torch.Generator(head.device)
    sampler.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    heads, anchors = pair.heads(), [row.anchors for row in rows]
    sampling = Sampling(rollout.temperature, top_p=rollout.top_p)
    draw = partial(drawn, heads[0], sampling=sampling, generator=sampler)
    with run.autocast(), recomputing(head):
        start = begun(head, layout)
        text, drafted = along_text(start, pair.unroll), along_drafts(start, anchors, pair.unroll, draw)
    judged = judge(pair.teacher, rows, drafted.tokens.tolist(), packed=run.packed)
    labels, shares = columns_of(layout.labels, heads[0]), _shares(pair)
    gone = replaced(layout, anchors, judged, pair.unroll)
    parts = [
        _of_text(layout, labels, known, states, taken, share)
        for states, taken, share in zip(text, gone, shares, strict=True)
    ]
    n_drafted = 0
    if judged is not None:
        parts.append(_of_drafts(run, heads[0], drafted.steps, judged, shares, sampler))
        n_drafted = _n_counted(run.objective, parts[-1])
    with run.autocast():
        losses = [part.weight * _loss(run, heads, part) for part in parts]
    return torch.cat(losses), n_drafted


@torch.no_grad()
def drawn(head: Head, states: Tensor, *, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """[M] ids, one from each of the distributions that an output head gives [M, d], a bounded number at a time."""
    rows = max(1, chunk_bytes(head.weight.device) // (8 * head.width))
    columns = [sample(probabilities(head(part), sampling), generator) for part in states.split(rows)]
    return torch.cat(columns) if head.ids is None else head.ids[torch.cat(columns)]


@torch.no_grad()
def judge(
    teacher: PreTrainedModel, rows: Sequence[Row], drafts: Sequence[Sequence[int]], *, packed: bool
) -> Judged | None:
    """What the teacher says after each drafted token but the last of a draft: nothing has been read after that.

    ``drafts`` are the tokens of the rows' drafts, in the order of the rows' anchors. ``packed`` reads each text once,
    with all its drafts beside it; otherwise it is read once a draft, a row at a time. None where nothing follows any
    draft's first token.
    """
    ends, device = eos_ids(teacher), teacher.device
    ended = [_ended(tokens, ends) for tokens in drafts]
    rest = iter(ended)
    grown = [_with_branches(row, [next(rest) for _ in row.anchors]) for row in rows]
    grown = [row for row in grown if row.branches]
    if not grown:
        return None
    found = []
    for group in [grown] if packed else [[row] for row in grown]:
        layout = lay_out(group, packed=packed, device=device)
        found.append(states(teacher, layout)[_goes_on(layout.sequence_ids)])
    depths = [(draft, step) for draft, tokens in enumerate(ended) for step in range(1, len(tokens))]
    draft, step = to_device(depths, device).T
    return Judged(draft, step, torch.cat(found))


def _ended(tokens: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    """Up to the first of ``ends``, which is the last token that means something."""
    n = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[:n])


def _with_branches(row: Row, drafts: Sequence[tuple[int, ...]]) -> Row:
    """The row with those of its drafts of which some token was read."""
    branches = [
        Branch(place, draft) for place, draft in zip(row.anchors, drafts, strict=True) if len(draft) > 1
    ]
    return Row(row.trunk, FIRST, tuple(branches), on_policy=True)


def _goes_on(sequence_ids: Tensor) -> Tensor:
    """[N] False at the first position of each sequence."""
    return torch.cat([sequence_ids.new_zeros(1, dtype=torch.bool), sequence_ids[1:] == sequence_ids[:-1]])


def replaced(
    layout: Layout, anchors: Sequence[Sequence[int]], judged: Judged | None, n_steps: int
) -> list[Tensor]:
    """[N] of each step: whether a draft stands in for the text there. ``anchors`` are those of each row."""
    width = layout.input_ids.shape[1]
    stride = width + n_steps  # a draft may end behind its text, and no place there is another row's
    places = layout.predictors // width * stride + layout.predictors % width
    if judged is None:
        return [torch.zeros_like(places, dtype=torch.bool)] * n_steps
    begins = [row * stride + place - 1 for row, line in enumerate(anchors) for place in line]
    drafted = to_device(begins, places.device)[judged.draft] + judged.step
    return [torch.isin(places, drafted[judged.step == step]) for step in range(n_steps)]


def _of_text(layout: Layout, labels: Tensor, p: Tensor | None, q: Tensor, taken: Tensor, weight: float) -> Part:
    """A step along the text, but where a drafted place has ``taken`` its own: windows of positions end there."""
    kept = ~taken
    sequence_ids = layout.sequence_ids + taken.cumsum(0)
    return Part(q[kept], None if p is None else p[kept], labels[kept], sequence_ids[kept], weight)


def _of_drafts(
    run: Run,
    student: Head,
    steps: Sequence[Tensor],
    judged: Judged,
    shares: Sequence[float],
    generator: torch.Generator,
) -> Part:
    """All places of the drafts. The label of each is what the teacher would write there, as it writes responses."""
    labels = None
    if run.objective.reads_labels:
        head = head_of(run.pair.teacher)
        whole = common_heads(head, head, run.pair.n_tokens)[1]
        sampling = Sampling(run.config.rollout.teacher_temperature)
        labels = columns_of(drawn(whole, judged.states, sampling=sampling, generator=generator), student)
    q = torch.stack(list(steps))[judged.step - 1, judged.draft]
    p = judged.states if run.objective.needs_teacher else None
    weight = shares[1] if len(shares) == 2 else torch.tensor(shares, device=q.device)[judged.step]
    return Part(q, p, labels, judged.draft, weight)


def _loss(run: Run, heads: tuple[Head, Head], part: Part) -> Tensor:
    """[K] the objective at the places of a part."""
    return chunked_loss(
        run.objective,
        (part.q, heads[0]),
        None if part.p is None else (part.p, heads[1]),
        labels=part.labels,
        sequence_ids=part.sequence_ids,
        chunk_tokens=run.config.objective.chunk_tokens or None,
        equal_weights=run.objective.needs_teacher and isinstance(part.weight, float),
    )


def _shares(pair: Pair) -> list[float]:
    """Of each step in the loss: decay^j, and 1 together."""
    return [weight / sum(pair.step_weights) for weight in pair.step_weights]


def _n_counted(objective: Objective, own: Part) -> int:
    """Drafted tokens in the loss: all, or where only labels matter those whose label the head has."""
    if objective.needs_teacher or own.labels is None:
        return len(own.q)
    return int((own.labels >= 0).sum())
