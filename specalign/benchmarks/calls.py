"""What is measured besides the generations: sizes, copy bandwidth, and the times of single calls."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from specalign.benchmarks.bandwidth import copy_bytes_per_s
from specalign.benchmarks.config import BenchConfig
from specalign.benchmarks.prompts import longest as longest_of
from specalign.benchmarks.runtime import all_reads
from specalign.benchmarks.suite import Suite
from specalign.decoding import Drafter
from specalign.decoding.clock import Clock
from specalign.decoding.drafters import Drafting
from specalign.decoding.parallel import drafts_at_once
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session, decoder_sequences, rooms
from specalign.probes import CallProbe, CopyProbe, ModelProbe, Probe
from specalign.results import TARGET

REPEATS = 3
"""Times that a call is made, each after the call that precedes it in decoding; the first is not recorded."""

LEAST = 2
"""Tokens of a text after which any drafter drafts."""

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
    n_accepted: int = 0
    """As in the probe."""


def fact_probes(suite: Suite) -> list[Probe]:
    """Sizes of the models, and the copy bandwidth here and now."""
    infos = [suite.target_info, *suite.drafter_infos]
    sizes: list[Probe] = [ModelProbe(info.name, info.bytes_per_step, info.n_multiplied) for info in infos]
    return [*sizes, CopyProbe(copy_bytes_per_s(suite.target.device))]


@torch.inference_mode()
def call_probes(suite: Suite, config: BenchConfig, number: int) -> list[Probe]:
    """T_target(q) for q = 1..gamma_max + 1, and drafting of 1 and gamma_max tokens (in parallel: of each number up to
    gamma_max), after drafts of which none, one and all were accepted where that tells, at one of the contexts in turn.

    ``number`` counts the calls of this function in a run.
    """
    clock = Clock(suite.target.device)
    prompts = probe_prompts(suite, config)
    calls = list(_calls(suite, config, prompts[number % len(prompts)]))
    random.Random(f"{config.seed}|{number}").shuffle(calls)
    return [
        CallProbe(
            call.method,
            call.temperature,
            call.context,
            call.n_tokens,
            _seconds(call, clock),
            call.after,
            call.n_accepted,
        )
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
    least = min(len(prompt.input_ids) for prompt in suite.prompts)
    most = max(longest_of(prompt, config.decoding.max_new_tokens) for prompt in suite.prompts)
    longest = max((prompt.input_ids for prompt in suite.prompts), key=len)
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
    session = Session.start(suite.target, [prompt], n_new, reads=all_reads(suite.drafters))
    plain = _target_call(session, prompt, 1)
    a_models_draft: Job | None = None
    without_model = False
    for temperature in config.decoding.temperatures:
        sampling = Sampling(temperature, config.decoding.top_k, config.decoding.top_p)
        generator = torch.Generator(suite.target.device).manual_seed(config.seed)
        for method, drafter in suite.drafters.items():
            if drafter is None or drafter.kind == "hybrid":  # its parts are called under their own names
                continue
            fixed = drafter.with_costs(None)  # a call drafts the number of tokens asked for
            drafting = fixed.start([prompt], n_new, sampling, session)
            drafting.ready()  # a call drafts, and reads no prompt
            (sequence,) = decoder_sequences(suite.target.model, [prompt])
            for n in timed_lengths(drafter, gamma_max):
                job = _draft_call(drafting.draft, sequence, n, generator)
                yield _Call(method, temperature, len(prompt), n, job, before=plain)
                if a_models_draft is None and drafter.kind == "model":
                    a_models_draft = job
            n = max(timed_lengths(drafter, gamma_max))
            for n_accepted in accepted_lengths(drafter, n, len(prompt)):
                start = partial(_start, fixed, sampling, session)
                steps = _Steps(session, start, prompt, n, n_accepted, generator)
                yield _Call(
                    method,
                    temperature,
                    len(prompt),
                    n,
                    steps.draft,
                    before=steps.verify,
                    n_accepted=n_accepted,
                )
            without_model |= drafter.kind != "model"
    yield _Call(TARGET, None, len(prompt), 1, plain)
    for n in range(2, gamma_max + 2):
        job = _target_call(session, prompt, n)
        if a_models_draft:
            yield _Call(TARGET, None, len(prompt), n, job, before=a_models_draft, after="draft")
        if without_model or not a_models_draft:
            yield _Call(TARGET, None, len(prompt), n, job, before=plain, after="target")


def timed_lengths(drafter: Drafter, gamma_max: int) -> list[int]:
    """Numbers of drafted tokens that are timed: 1 and gamma_max, since the calls of a draft cost alike; of a parallel
    drafter, whose one call may cost anything, each up to the most that it drafts."""
    most = drafts_at_once(drafter)
    return list(range(1, min(gamma_max, most) + 1)) if most > 1 else sorted({1, gamma_max})


def accepted_lengths(drafter: Drafter, n: int, context: int) -> list[int]:
    """Numbers of accepted tokens of a draft of ``n`` after which the next is timed too, where steps of so many fit.

    Of drafters that read all of them in a call of the next draft: heads, and parallel drafters. Others have read them
    while they drafted.
    """
    reads = drafter.reads or drafts_at_once(drafter) > 1
    return [a for a in sorted({1, n}) if reads and context >= LEAST + _grown(a)]


def _grown(n_accepted: int) -> int:
    """Tokens by which a text grows while a draft is timed."""
    return REPEATS * (n_accepted + 1)


class _Steps:
    """Steps of decoding as a prompt's last tokens come: a draft, its verification, and the draft after it.

    The last of :data:`REPEATS` is after the whole prompt.
    """

    def __init__(
        self,
        session: Session,
        start: Callable[[list[int], int], Drafting],
        prompt: list[int],
        n: int,
        n_accepted: int,
        generator: torch.Generator,
    ) -> None:
        self.session, self.n, self.n_accepted, self.generator = session, n, n_accepted, generator
        self.prompt, self.length = prompt, len(prompt) - _grown(n_accepted)
        self.drafting = start(prompt[: self.length], _grown(n_accepted) + n + 2)
        self.drafting.ready()

    def draft(self) -> None:
        """What is timed."""
        self.drafting.draft([self.prompt[: self.length]], [self.n], self.generator)

    def verify(self) -> None:
        """The draft before, and the target's call by which ``n_accepted`` of its tokens and one more join the text."""
        self.session.rollback([self.length - 1])
        self.draft()
        fed = [self.prompt[(self.length - 1 + place) % len(self.prompt)] for place in range(self.n + 1)]
        self.session.extend(torch.tensor([fed], device=self.session.model.device))
        self.length += self.n_accepted + 1
        self.session.rollback([self.length - 1])


def _start(drafter: Drafter, sampling: Sampling, session: Session, text: list[int], n_new: int) -> Drafting:
    """Read the beginning of a text of which the session has just read all."""
    return drafter.start([text], n_new, sampling, session)


def _target_call(session: Session, prompt: list[int], n: int) -> Job:
    before = list(session.lengths)
    ids = torch.tensor([[prompt[-1 - place % len(prompt)] for place in range(n)]], device=session.model.device)

    def call() -> None:
        session.rollback(before)
        session.extend(ids)
        session.rollback(before)

    return call


def _draft_call(draft: Callable[..., object], sequence: list[int], n: int, generator: torch.Generator) -> Job:
    return lambda: draft([sequence], [n], generator)
