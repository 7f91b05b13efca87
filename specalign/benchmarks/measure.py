"""What is measured besides the generations: times of single calls, and acceptance along the target's own outputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.benchmarks.bandwidth import copy_bytes_per_s
from specalign.benchmarks.config import BenchConfig
from specalign.benchmarks.suite import Suite
from specalign.decoding import Drafter, ModelDrafter
from specalign.decoding.clock import Clock
from specalign.decoding.sampling import Sampling, probabilities
from specalign.decoding.session import Session, decoder_sequences, rooms
from specalign.metrics.sampled_tokens import Moments, token_moments, total
from specalign.models.heads import head_of, hidden_states
from specalign.probes import CallProbe, CopyProbe, ForcedProbe, ModelProbe, Probe, SampledProbe
from specalign.progress import progress_bar
from specalign.results import TARGET, GenerationRecord

REPEATS = 3
"""Times that a call is made, each after the call that precedes it in decoding; the first is not recorded."""
POSITIONS = 64
"""Positions whose full distributions are held at a time."""

Job = Callable[[], object]


@dataclass(frozen=True)
class _Call:
    """One kind of call, ready to be made."""

    method: str
    temperature: float | None
    context: int
    n_tokens: int
    make: Job
    before: Job | None = None
    """What decoding does just before: another model's call leaves the processor's cache without this one's weights."""
    after: Literal["draft", "target", ""] = ""
    """As in the probe."""


def fact_probes(suite: Suite) -> list[Probe]:
    """Sizes of the models, and the copy bandwidth here and now."""
    infos = [suite.target_info, *suite.drafter_infos]
    sizes: list[Probe] = [ModelProbe(info.name, info.bytes_per_step, info.n_multiplied) for info in infos]
    return [*sizes, CopyProbe(copy_bytes_per_s(suite.target.device))]


@torch.inference_mode()
def call_probes(suite: Suite, config: BenchConfig, number: int) -> list[Probe]:
    """T_target(q) for q = 1..gamma_max + 1, and drafting of 1 and gamma_max tokens, at one of the contexts in turn.

    ``number`` counts the calls of this function in a run.
    """
    clock = Clock(suite.target.device)
    prompts = probe_prompts(suite, config)
    calls = list(_calls(suite, config, prompts[number % len(prompts)]))
    random.Random(f"{config.seed}|{number}").shuffle(calls)
    return [
        CallProbe(call.method, call.temperature, call.context, call.n_tokens, _seconds(call, clock), call.after)
        for call in calls
    ]


def _seconds(call: _Call, clock: Clock) -> list[float]:
    times = []
    for _ in range(REPEATS):
        if call.before:
            call.before()
        begin = clock.settle()
        call.make()
        times.append(clock.settle() - begin)
    return times[1:]


def probe_prompts(suite: Suite, config: BenchConfig) -> list[list[int]]:
    """Prompts from the shortest of the run to the longest with its output, in three lengths; in context.

    The lengths in between are made by repeating the longest prompt. An encoder reads prompts of the run's lengths.
    """
    lengths = [len(prompt.input_ids) for prompt in suite.prompts]
    longest = max((prompt.input_ids for prompt in suite.prompts), key=len)
    least, most = min(lengths), max(lengths)
    if not suite.target.model.config.is_encoder_decoder:
        most += config.decoding.max_new_tokens
    free = rooms(suite.target.model, decoder_sequences(suite.target.model, [longest]))
    if free is not None:
        most = min(most, len(longest) + free[0] - max(config.decoding.gammas) - 1)
    wanted = sorted({least, (least + most) // 2, most})
    return [[longest[place % len(longest)] for place in range(n)] for n in wanted if n > 0]


def _calls(suite: Suite, config: BenchConfig, prompt: list[int]) -> Iterator[_Call]:
    """Plain steps follow plain steps, drafts the target's calls; the target's longer calls what drafted.

    That is a model's draft, or, where drafting calls no model (prompt lookup), the target's call before.
    """
    gamma_max = max(config.decoding.gammas)
    n_new = gamma_max + 2
    session = Session.start(suite.target, [prompt], n_new)
    plain = _target_call(session, prompt, 1)
    a_models_draft: Job | None = None
    without_model = False
    for temperature in config.decoding.temperatures:
        sampling = Sampling(temperature, config.decoding.top_k, config.decoding.top_p)
        generator = torch.Generator(suite.target.device).manual_seed(config.seed)
        for method, drafter in suite.drafters.items():
            if drafter is None:
                continue
            if isinstance(drafter, ModelDrafter):
                drafter = replace(drafter, adaptive=None)  # a call drafts the number of tokens asked for
            drafting = drafter.start([prompt], n_new, sampling, session)
            (sequence,) = decoder_sequences(suite.target.model, [prompt])
            for n in sorted({1, gamma_max}):
                job = _draft_call(drafting.draft, sequence, n, generator)
                yield _Call(method, temperature, len(prompt), n, job, before=plain)
                if a_models_draft is None and isinstance(drafter, ModelDrafter):
                    a_models_draft = job
            without_model |= not isinstance(drafter, ModelDrafter)
    yield _Call(TARGET, None, len(prompt), 1, plain)
    for n in range(2, gamma_max + 2):
        job = _target_call(session, prompt, n)
        if a_models_draft:
            yield _Call(TARGET, None, len(prompt), n, job, before=a_models_draft, after="draft")
        if without_model or not a_models_draft:
            yield _Call(TARGET, None, len(prompt), n, job, before=plain, after="target")


def _target_call(session: Session, prompt: list[int], n: int) -> Job:
    before = list(session.lengths)
    ids = torch.tensor([[prompt[-1 - place % len(prompt)] for place in range(n)]], device=session.model.device)

    def call() -> None:
        session.extend(ids)
        session.rollback(before)

    return call


def _draft_call(draft: Callable[..., object], sequence: list[int], n: int, generator: torch.Generator) -> Job:
    return lambda: draft([sequence], [n], generator)


@torch.inference_mode()
def output_probes(suite: Suite, config: BenchConfig, records: Sequence[GenerationRecord]) -> list[Probe]:
    """Every drafter along each output of the plain target, and the target along each output that was sampled."""
    prompts = {prompt.id: prompt.input_ids for prompt in suite.prompts}
    read = [
        record for record in records if record.status == "ok" and (record.method == TARGET or _sampled(record))
    ]
    found: list[Probe] = []
    with progress_bar("reading outputs", len(read)) as bar:
        for record in read:
            sampling = Sampling(record.temperature, config.decoding.top_k, config.decoding.top_p)
            trajectory = _Trajectory(suite, prompts[record.prompt_id], record.token_ids, sampling)
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
        ForcedProbe(method, record.prompt_id, record.repeat, record.temperature, trajectory.overlap(drafter))
        for method, drafter in suite.drafters.items()
        if drafter is not None
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
    )


class _Trajectory:
    """One output, read by the target: its hidden states along it, once for all that is asked of them."""

    def __init__(self, suite: Suite, prompt: Sequence[int], output: Sequence[int], sampling: Sampling) -> None:
        self.target, self.prompt, self.output, self.sampling = suite.target, prompt, output, sampling
        self.head = suite.target.head
        self.hidden = _along(suite.target.model, prompt, output)

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
        if isinstance(drafter, ModelDrafter):
            return self._model_overlap(drafter)
        return self._drafted_overlap(drafter)

    def _model_overlap(self, drafter: ModelDrafter) -> list[float | None]:
        head = head_of(drafter.model, drafter.draft_vocabulary)
        hidden = _along(drafter.model, self.prompt, self.output)
        shares: list[float | None] = []
        for start in range(0, len(self.output), POSITIONS):
            p = probabilities(self.head(self.hidden[start : start + POSITIONS]), self.sampling)
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
