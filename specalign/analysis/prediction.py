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
from specalign.records import GenerationRecord, StepTrace
from specalign.results import LOOKUPS, TARGET

CallTimes = Callable[[Sequence[float], Sequence[int]], np.ndarray]
"""(numbers of tokens, context lengths), one of each a call -> seconds of each call."""


def target_seconds(probes: Sequence[Probe], method: str) -> CallTimes | None:
    """Seconds of the target's calls where ``method`` drafts: they follow its model's draft, if it has a model."""
    return call_seconds(probes, TARGET, None, after="target" if method in LOOKUPS else "draft")


def call_seconds(
    probes: Sequence[Probe], method: str, temperature: float | None, *, after: str = ""
) -> CallTimes | None:
    """Median seconds of a method's calls, on straight lines between the contexts and counts that were measured.

    Beyond the measured ones the nearest holds. Calls that came after something else than ``after`` are left out, and
    drafts after others that were accepted (:func:`entering_seconds`). None where there are no such probes.
    """
    calls = [probe for probe in _calls(probes, method, temperature) if probe.after in ("", after)]
    return _on_lines([(probe.n_tokens, probe) for probe in calls if not probe.n_accepted])


def entering_seconds(probes: Sequence[Probe], method: str, temperature: float | None) -> CallTimes | None:
    """E(a, L): seconds that a draft takes longer after one of which a tokens were accepted than after one of none.

    On straight lines as above. None where that was not timed: other drafters than heads and parallel ones have read
    their own tokens while they drafted them.
    """
    calls = _calls(probes, method, temperature)
    longest = {probe.n_tokens for probe in calls if probe.n_accepted}
    seconds = _on_lines([(probe.n_accepted, probe) for probe in calls if probe.n_tokens in longest])
    if seconds is None:
        return None
    return lambda n_accepted, contexts: seconds(n_accepted, contexts) - seconds([0] * len(n_accepted), contexts)


def _calls(probes: Sequence[Probe], method: str, temperature: float | None) -> list[CallProbe]:
    return [
        probe
        for probe in probes
        if isinstance(probe, CallProbe) and (probe.method, probe.temperature) == (method, temperature)
    ]


def _on_lines(calls: Sequence[tuple[int, CallProbe]]) -> CallTimes | None:
    """Medians of calls, each with a count of tokens, and straight lines between contexts first, then counts."""
    samples: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for count, probe in calls:
        samples[count][probe.context] += probe.seconds
    if not samples:
        return None
    counts = sorted(samples)
    lengths = [sorted(samples[n]) for n in counts]
    medians = [[median(samples[n][length]) for length in own] for n, own in zip(counts, lengths, strict=True)]

    def seconds(n_tokens: Sequence[float], contexts: Sequence[int]) -> np.ndarray:
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

    A step that drafts n tokens after a context of L, and after a draft of which a were accepted, takes T_draft(n, L)
    + E(a, L) + T_target(n + 1, L) and the median rest of such steps.
    """
    n_drafted, contexts, rest, n_accepted = _steps(records)
    target = target_seconds(probes, records[0].method) if records else None
    if target is None or not n_drafted:
        return None
    draft_s = np.zeros(len(n_drafted))
    if any(n_drafted):
        method, temperature = records[0].method, records[0].temperature
        draft = call_seconds(probes, method, temperature)
        if draft is None:
            return None
        whole = draft(n_drafted, contexts)
        if entering := entering_seconds(probes, method, temperature):
            whole += entering(n_accepted, contexts)
        draft_s = np.where(np.array(n_drafted) > 0, whole, 0.0)
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


def mean_call_seconds(probes: Sequence[Probe], seconds: CallTimes | None, n_tokens: float) -> float | None:
    """``seconds`` of a call on ``n_tokens`` tokens, averaged over the contexts that were measured."""
    contexts = sorted({probe.context for probe in probes if isinstance(probe, CallProbe)})
    return None if seconds is None else float(seconds([n_tokens] * len(contexts), contexts).mean())


def _steps(
    records: Sequence[GenerationRecord],
) -> tuple[list[int], list[int], np.ndarray, list[int]]:
    """Of every step: tokens drafted, tokens before it, the median rest of steps that drafted as many, and the tokens
    before it but one that its drafter has not read: what was accepted, or came while it drafted nothing."""
    n_drafted: list[int] = []
    contexts: list[int] = []
    n_unread: list[int] = []
    rests: dict[int, list[float]] = defaultdict(list)
    for record in records:
        if record.steps is None:
            continue
        before = np.cumsum([record.n_prompt_tokens, *record.steps.n_emitted[:-1]])
        n_drafted += record.steps.n_drafted
        contexts += before.tolist()
        n_unread += _unread(record.steps)
        for n, rest in zip(record.steps.n_drafted, record.steps.rest_s, strict=True):
            rests[n].append(rest)
    medians = {n: median(values) for n, values in rests.items()}
    return n_drafted, contexts, np.array([medians[n] for n in n_drafted]), n_unread


def _unread(steps: StepTrace) -> list[int]:
    found, unread = [], 0
    for drafted, emitted in zip(steps.n_drafted, steps.n_emitted, strict=True):
        found.append(max(0, unread - 1))
        unread = emitted if drafted else unread + emitted
    return found
