"""What the outputs of a run say when the models read them again: acceptance, and where sampled tokens lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.benchmarks.config import BenchConfig
from specalign.benchmarks.runtime import all_reads
from specalign.benchmarks.suite import Suite
from specalign.decoding import Drafter
from specalign.decoding.hybrid import drafting_models
from specalign.decoding.sampling import Sampling, probabilities
from specalign.decoding.session import Session, decoder_sequences
from specalign.metrics.sampled_tokens import Moments, token_moments, total
from specalign.models.eagle import EagleHead
from specalign.models.heads import Head, head_of, hidden_states
from specalign.models.states import states_entering
from specalign.probes import ForcedProbe, Probe, SampledProbe
from specalign.progress import progress_bar
from specalign.records import GenerationRecord, record_key
from specalign.results import TARGET

POSITIONS = 64
"""Positions whose full distributions are held at a time."""


@torch.inference_mode()
def output_probes(suite: Suite, config: BenchConfig, records: Sequence[GenerationRecord]) -> list[Probe]:
    """Every drafter along each output of the plain target, and the target along each output that was sampled."""
    talks = suite.talks(records)
    read = [
        record for record in records if record.status == "ok" and (record.method == TARGET or _sampled(record))
    ]
    found: list[Probe] = []
    with progress_bar("reading outputs", len(read)) as bar:
        for record in read:
            sampling = Sampling(record.temperature, config.decoding.top_k, config.decoding.top_p)
            trajectory = _Trajectory(suite, talks.input_ids(record_key(record)), record.token_ids, sampling)
            if record.method == TARGET:
                found += _forced(suite, trajectory, record)
            if _sampled(record):
                found.append(_sampled_probe(trajectory, record))
            bar.advance()
    return found


def _sampled(record: GenerationRecord) -> bool:
    return record.lossless and record.temperature > 0


def _forced(suite: Suite, trajectory: _Trajectory, record: GenerationRecord) -> list[Probe]:
    return [
        ForcedProbe(
            method,
            record.prompt_id,
            record.repeat,
            record.temperature,
            trajectory.overlap(drafter),
            turn=record.turn,
        )
        for method, drafter in suite.drafters.items()
        if drafter is not None and drafter.kind != "hybrid"
    ]


def _sampled_probe(trajectory: _Trajectory, record: GenerationRecord) -> SampledProbe:
    found = trajectory.moments()
    return SampledProbe(
        record.method,
        record.prompt_id,
        record.repeat,
        record.temperature,
        record.gamma,
        len(record.token_ids),
        found.observed,
        found.variance,
        turn=record.turn,
    )


class _Trajectory:
    """One output, read by the target: its hidden states along it, once for all that is asked of them."""

    def __init__(self, suite: Suite, prompt: Sequence[int], output: Sequence[int], sampling: Sampling) -> None:
        self.target, self.prompt, self.output, self.sampling = suite.target, prompt, output, sampling
        self.head = suite.target.head
        with states_entering(suite.target.model, all_reads(suite.drafters)) as states:
            self.hidden = _along(suite.target.model, prompt, output)
        self.states = {layer: each[0] for layer, each in states.items()}
        """Of each layer that a drafter reads, [T - 1, h] of a text of T tokens."""

    def moments(self) -> Moments:
        """Of G(x) over the output's tokens x."""
        ids = torch.tensor(self.output, device=self.hidden.device)
        return total(
            token_moments(
                probabilities(self.head(self.hidden[start : start + POSITIONS]), self.sampling),
                ids[start : start + POSITIONS],
            )
            for start in range(0, len(self.output), POSITIONS)
        )

    def overlap(self, drafter: Drafter) -> list[float | None]:
        """sum_v min(p, q) before each token of the output."""
        if drafter.alone:
            model = drafter.alone.model
            return self._overlap(
                head_of(model, drafter.alone.head.ids), _along(model, self.prompt, self.output)
            )
        if drafter.reads:
            return self._head_overlap(drafter)
        return self._drafted_overlap(drafter.with_costs(None))

    def _head_overlap(self, drafter: Drafter) -> list[float | None]:
        """Of a head that reads the target's true states all along; it cannot draft after a single token."""
        (head,) = drafting_models(drafter)
        assert isinstance(head, EagleHead)
        text = [*self.prompt, *self.output[:-1]]
        ids = torch.tensor([text[1:]], device=head.device)
        true = torch.cat([self.states[layer] for layer in drafter.reads], -1)[: len(text) - 1].to(head.dtype)
        positions = torch.arange(len(text) - 1, device=head.device).unsqueeze(0)
        output = head(ids, head.project(true.unsqueeze(0)), position_ids=positions, attention_mask=None)[0]
        first = len(self.prompt) - 2
        hidden = head.head_input(output[max(0, first) :])
        shares = self._overlap(replace(head_of(head), ids=head.draft_ids), hidden, skipped=max(0, -first))
        return [None] * max(0, -first) + shares

    def _overlap(self, head: Head, hidden: Tensor, skipped: int = 0) -> list[float | None]:
        """Of the tokens after the first ``skipped``; ``hidden`` [n - skipped, h] are what ``head`` drafts them from."""
        shares: list[float | None] = []
        ours = self.hidden[skipped:]
        for start in range(0, len(ours), POSITIONS):
            p = probabilities(self.head(ours[start : start + POSITIONS]), self.sampling)
            logits = head(hidden[start : start + POSITIONS])
            q = probabilities(logits if head.ids is not None else logits[:, : p.shape[-1]], self.sampling)
            same = p[:, head.ids] if head.ids is not None else p[:, : q.shape[-1]]
            shares += torch.minimum(same, q).sum(-1).tolist()
        return shares

    def _drafted_overlap(self, drafter: Drafter) -> list[float | None]:
        """For drafters that are certain of what they propose: p of the proposal, None where there is none."""
        session = Session.start(self.target, [self.prompt[:1]], 1)
        drafting = drafter.start([self.prompt], len(self.output), self.sampling, session)
        (sequence,) = decoder_sequences(self.target.model, [self.prompt])
        shares: list[float | None] = []
        for place in range(len(self.output)):
            draft = drafting.draft([[*sequence, *self.output[:place]]], [1], None)
            p = probabilities(self.head(self.hidden[place]), self.sampling)
            shares.append(float(p[draft.ids[0, 0]]) if draft.counts[0] else None)
        return shares


def _along(model: PreTrainedModel, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
    """Hidden states [n, d] from which the model predicts each of the n output tokens."""
    (start,) = decoder_sequences(model, [prompt])
    ids = torch.tensor([[*start, *output[:-1]]], device=model.device)
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs = {"input_ids": torch.tensor([list(prompt)], device=model.device), "decoder_input_ids": ids}
    return hidden_states(model, **inputs)[0, len(start) - 1 :]
