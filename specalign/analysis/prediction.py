"""Speed-up predicted from call times that were measured apart from the generations that it predicts.

docs/metrics.md, "Predicted from probes", has the formula.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from specalign.analysis.cost_model import tokens_from_survival
from specalign.probes import CallProbe, Probe
from specalign.records import GenerationRecord
from specalign.results import LOOKUPS, TARGET

CallTimes = Callable[[Sequence[int], Sequence[int]], np.ndarray]
"""(numbers of tokens, context lengths), one of each a call -> seconds of each call."""


def target_seconds(probes: Sequence[Probe], method: str) -> CallTimes | None:
    """Seconds of the target's calls where ``method`` drafts: they follow its model's draft, if it has a model."""
    return call_seconds(probes, TARGET, None, after="target" if method in LOOKUPS else "draft")


def call_seconds(
    probes: Sequence[Probe], method: str, temperature: float | None, *, after: str = ""
) -> CallTimes | None:
    """Median seconds of a method's calls, on straight lines between the contexts and counts that were measured.

    Beyond the measured ones the nearest holds. Calls that came after something else than ``after`` are left out.
    None where there are no such probes.
    """
    samples: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for probe in probes:
        if not isinstance(probe, CallProbe) or (probe.method, probe.temperature) != (method, temperature):
            continue
        if probe.after in ("", after):
            samples[probe.n_tokens][probe.context] += probe.seconds
    if not samples:
        return None
    counts = sorted(samples)
    lengths = [sorted(samples[n]) for n in counts]
    medians = [[median(samples[n][length]) for length in own] for n, own in zip(counts, lengths, strict=True)]

    def seconds(n_tokens: Sequence[int], contexts: Sequence[int]) -> np.ndarray:
        by_count = np.stack([np.interp(contexts, *curve) for curve in zip(lengths, medians, strict=True)])
        columns = zip(n_tokens, by_count.T, strict=True)
        return np.array([np.interp(n, counts, column) for n, column in columns])

    return seconds


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the steps of some generations by the cost model, one entry a step."""

    n_drafted: list[int]
    draft_s: np.ndarray
    verify_s: np.ndarray
    rest_s: np.ndarray

    @property
    def total_s(self) -> np.ndarray:
        """Seconds of each step."""
        return self.draft_s + self.verify_s + self.rest_s


def probed_steps(records: Sequence[GenerationRecord], probes: Sequence[Probe]) -> StepTimes | None:
    """What the steps of ``records`` (one method, temperature and gamma) should have taken; None without probes.

    A step that drafts n tokens after a context of L takes T_draft(n, L) + T_target(n + 1, L) and the median rest
    of such steps.
    """
    n_drafted, contexts, rest = _steps(records)
    target = target_seconds(probes, records[0].method) if records else None
    if target is None or not n_drafted:
        return None
    draft_s = np.zeros(len(n_drafted))
    if any(n_drafted):
        draft = call_seconds(probes, records[0].method, records[0].temperature)
        if draft is None:
            return None
        draft_s = np.where(np.array(n_drafted) > 0, draft(n_drafted, contexts), 0.0)
    return StepTimes(n_drafted, draft_s, target([n + 1 for n in n_drafted], contexts), rest)


def predicted_from_probes(
    records: Sequence[GenerationRecord],
    plain: Sequence[GenerationRecord],
    survival: Sequence[float | None],
    probes: Sequence[Probe],
) -> float | None:
    """Decode speed-up of ``records`` over ``plain`` at temperature and context alike; None without probes.

    A step that drafts n tokens is expected to emit 1 + S_1 + ... + S_n.
    """
    ours, theirs = probed_steps(records, probes), probed_steps(plain, probes)
    if ours is None or theirs is None:
        return None
    tokens = sum(tokens_from_survival(survival[:n]) for n in ours.n_drafted)
    return float(tokens / ours.total_s.sum() * theirs.total_s.mean())


def mean_call_seconds(probes: Sequence[Probe], seconds: CallTimes | None, n_tokens: int) -> float | None:
    """``seconds`` of a call on ``n_tokens`` tokens, averaged over the contexts that were measured."""
    contexts = sorted({probe.context for probe in probes if isinstance(probe, CallProbe)})
    return None if seconds is None else float(seconds([n_tokens] * len(contexts), contexts).mean())


def _steps(records: Sequence[GenerationRecord]) -> tuple[list[int], list[int], np.ndarray]:
    """Of every step: tokens drafted, tokens before it, and the median rest of steps that drafted as many."""
    n_drafted: list[int] = []
    contexts: list[int] = []
    rests: dict[int, list[float]] = defaultdict(list)
    for record in records:
        if record.steps is None:
            continue
        before = np.cumsum([record.n_prompt_tokens, *record.steps.n_emitted[:-1]])
        n_drafted += record.steps.n_drafted
        contexts += before.tolist()
        for n, rest in zip(record.steps.n_drafted, record.steps.rest_s, strict=True):
            rests[n].append(rest)
    medians = {n: median(values) for n, values in rests.items()}
    return n_drafted, contexts, np.array([medians[n] for n in n_drafted])
