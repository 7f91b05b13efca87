"""Per-token losses and drafter metrics of laid-out rows. Only scored positions go through the heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.losses import Objective, chunked_loss, overlap
from specalign.losses.chunked import chunk_bytes
from specalign.models.eagle import EagleHead
from specalign.models.heads import Head, common_heads, head_of, hidden_states, known_ids
from specalign.models.masks import attention_masks
from specalign.models.states import states_entering
from specalign.training.rows import Layout
from specalign.training.unrolling import unrolled


@dataclass(frozen=True)
class Pair:
    """Student q and frozen teacher p, made comparable."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    n_tokens: int
    """Ids that the tokenizer can produce; rows beyond are padding."""
    draft_vocabulary: Tensor | None = None
    """[V'] ids of the drafter's trimmed head."""
    decoder: Callable[..., Any] | None = None
    """The student's decoder as the loss runs it, compiled for instance; None: as it is."""
    unroll: int = 1
    """Steps J of a head's draft that the loss looks at."""
    decay: float = 1.0
    """Weight of a step's loss, relative to that of the step before."""

    @cached_property
    def known_vocabulary(self) -> Tensor | None:
        """Of the trimmed head's ids those that the teacher has too."""
        if self.draft_vocabulary is None:
            return None
        return known_ids(self.draft_vocabulary, head_of(self.teacher), self.n_tokens)

    @property
    def step_weights(self) -> list[float]:
        """Of each step's loss, relative to the first."""
        return [self.decay**step for step in range(self.unroll)]

    @property
    def reads(self) -> tuple[int, ...]:
        """Layers of the teacher whose incoming states the student reads."""
        return self.student.config.reads if isinstance(self.student, EagleHead) else ()

    def drafted(self, layout: Layout, n_steps: int) -> list[Tensor]:
        """[N, d] of each step: what the student's output head is applied to; a model's drafts have one kind of step.

        A model reads the text and nothing else, so that it is the same for it which step of a draft a token is.
        """
        if isinstance(self.student, EagleHead):
            return unrolled(self.student, layout, n_steps)
        return [states(self.student, layout, self.decoder)]

    def heads(self) -> tuple[Head, Head]:
        """Both heads over the common ids; the student's is differentiable."""
        student = head_of(self.student, self.known_vocabulary)
        return common_heads(student, head_of(self.teacher), self.n_tokens)


def states(model: PreTrainedModel, layout: Layout, decoder: Callable[..., Any] | None = None) -> Tensor:
    """[N, d] what the head is applied to at the scored tokens' predictors."""
    inputs: dict[str, Any] = {"input_ids": layout.input_ids}
    if layout.encoder is not None:
        ids, mask, owner = layout.encoder
        inputs = {"input_ids": ids, "attention_mask": mask, "encoder_rows": owner}
        inputs["decoder_input_ids"] = layout.input_ids
    elif layout.visible is not None:
        assert layout.position_ids is not None
        inputs["attention_mask"] = attention_masks(
            model.get_decoder().config, layout.visible, layout.position_ids, layout.position_ids, model.dtype
        )
        inputs["position_ids"] = layout.position_ids
    return hidden_states(model, decoder, **inputs).flatten(0, 1)[layout.predictors]


@torch.no_grad()
def observed(teacher: PreTrainedModel, layout: Layout, reads: Sequence[int]) -> tuple[Layout, Tensor]:
    """The layout with what a head reads, and the teacher's states [N, d], in one pass."""
    if not reads:
        return layout, states(teacher, layout)
    with states_entering(teacher, reads) as caught:
        final = states(teacher, layout)
    return replace(layout, read=torch.cat([caught[layer] for layer in reads], dim=-1)), final


def can_pack(model: PreTrainedModel) -> bool:
    """Whether ``model`` takes an explicit mask between all tokens of a row."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return (
        not model.config.is_encoder_decoder
        and model.config._attn_implementation in ("sdpa", "eager")
        and kinds <= {"full_attention", "sliding_attention"}
    )


def per_token_loss(
    pair: Pair,
    layout: Layout,
    objective: Objective,
    teacher_states: Tensor | None,
    *,
    reference_loss: Tensor | None = None,
    chunk_tokens: int = 0,
) -> Tensor:
    """Loss [N] of the student at every scored token; gradients reach the student alone.

    Of a head it is the mean over the steps j < J of its drafts, each weighted by decay^j.
    ``teacher_states`` [N, d] are the teacher's at the same positions; None for an objective that needs none.
    ``reference_loss`` [N] is what an objective that selects tokens subtracts first. Of an objective that looks at the
    teacher all tokens count, so that the sum of these losses weighs them alike.
    """
    student, teacher = pair.heads()
    losses = [
        chunked_loss(
            objective,
            (drafted, student),
            None if teacher_states is None else (teacher_states, teacher),
            labels=columns_of(layout.labels, student),
            sequence_ids=layout.sequence_ids,
            reference_loss=reference_loss,
            chunk_tokens=chunk_tokens or None,
            equal_weights=objective.needs_teacher,
        )
        for drafted in pair.drafted(layout, pair.unroll)
    ]
    if len(losses) == 1:
        return losses[0]
    weights = pair.step_weights
    weighted = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
    return torch.stack(weighted).sum(0) / sum(weights)


def columns_of(labels: Tensor, head: Head) -> Tensor:
    """Where each label stands among the head's rows; -1 for a label that it lacks."""
    if head.ids is None:
        return torch.where(labels < head.width, labels, -1)
    place = torch.searchsorted(head.ids, labels).clamp(max=head.width - 1)
    return torch.where(head.ids[place] == labels, place, -1)


@dataclass(frozen=True)
class Overlaps:
    """Teacher-forced drafter metrics at N positions."""

    alpha: Tensor
    """[N] sum_v min(p, q) over the teacher's whole vocabulary."""
    agreement: Tensor
    """[N] 1 where the argmax is the same."""
    drafted: Tensor
    """[J, N] alpha of each step of a head's drafts, that of the first, ``alpha``, included; of a model [1, N]."""


@torch.no_grad()
def overlaps(pair: Pair, layout: Layout, teacher_states: Tensor | None = None, *, n_steps: int = 1) -> Overlaps:
    """Both metrics, with what a trimmed head misses counted against the drafter.

    ``teacher_states`` [N, d], and what a head reads, are computed where they are not given. ``n_steps`` of a head's
    drafts are looked at.
    """
    if teacher_states is None:
        layout, teacher_states = observed(pair.teacher, layout, pair.reads)
    student = pair.heads()[0]
    whole = common_heads(head_of(pair.teacher), head_of(pair.teacher), pair.n_tokens)[1]
    pair = replace(pair, decoder=None)
    q_states = torch.stack(pair.drafted(layout, n_steps))
    rows = max(1, chunk_bytes(whole.weight.device) // (4 * whole.width))
    alphas, agreements = [], []
    for q_parts, p_part in zip(q_states.split(rows, dim=1), teacher_states.split(rows), strict=True):
        p = whole(p_part).float()
        common = p if student.ids is None else p[:, student.ids]
        common, mass = common[:, : student.width], p.logsumexp(-1)
        first = student(q_parts[0]).float()
        later = [student(part).float() for part in q_parts[1:]]
        alphas.append(torch.stack([overlap(q, common, mass) for q in (first, *later)]))
        likeliest = first.argmax(-1) if student.ids is None else student.ids[first.argmax(-1)]
        agreements.append((likeliest == p.argmax(-1)).float())
    drafted = torch.cat(alphas, dim=1)
    return Overlaps(drafted[0], torch.cat(agreements), drafted)
