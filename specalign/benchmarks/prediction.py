"""Speed-up predicted from call times that were measured apart from the generations that it predicts.

docs/metrics.md, "Predicted from probes", has the formula.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import mean, median

import numpy as np

from specalign.benchmarks.config import TARGET
from specalign.benchmarks.cost_model import tokens_from_survival
from specalign.probes import CallProbe, Probe
from specalign.results import GenerationRecord

CallSeconds = Callable[[Sequence[int], Sequence[int]], np.ndarray]
"""(numbers of tokens, context lengths), one of each a call -> seconds of each call."""


def call_seconds(probes: Sequence[Probe], method: str, temperature: float | None) -> CallSeconds | None:
    """Median seconds of a method's calls, on straight lines between the contexts and counts that were measured.

    Beyond the measured ones the nearest holds. None where there are no such probes.
    """
    samples: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for probe in probes:
        if isinstance(probe, CallProbe) and (probe.method, probe.temperature) == (method, temperature):
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


def predicted_from_probes(
    records: Sequence[GenerationRecord],
    plain: Sequence[GenerationRecord],
    survival: Sequence[float | None],
    probes: Sequence[Probe],
) -> float | None:
    """Decode speed-up of ``records`` (one method, temperature and gamma) over ``plain``; None without probes.

    A step that drafts n tokens after a context of L is expected to emit 1 + S_1 + ... + S_n tokens and to take
    T_draft(n, L) + T_target(n + 1, L) and the median rest of such steps.
    """
    target = call_seconds(probes, TARGET, None)
    draft = call_seconds(probes, records[0].method, records[0].temperature)
    if target is None or draft is None:
        return None
    n_drafted, contexts, rest = _steps(records)
    seconds = target([n + 1 for n in n_drafted], contexts) + rest
    seconds += np.where(np.array(n_drafted) > 0, draft(n_drafted, contexts), 0.0)
    tokens = [tokens_from_survival(survival[:n]) for n in n_drafted]
    plain_n, plain_contexts, plain_rest = _steps(plain)
    plain_seconds = target([n + 1 for n in plain_n], plain_contexts) + plain_rest
    if not tokens or not len(plain_seconds):
        return None
    return float(sum(tokens) / seconds.sum() * plain_seconds.mean())


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


def mean_call_seconds(
    probes: Sequence[Probe], method: str, temperature: float | None, n_tokens: int
) -> float | None:
    """Seconds of a call on ``n_tokens`` tokens, averaged over the contexts that were measured."""
    seconds = call_seconds(probes, method, temperature)
    found = {probe.context for probe in probes if isinstance(probe, CallProbe) and probe.method == method}
    contexts = sorted(found)
    return None if seconds is None else mean(seconds([n_tokens] * len(contexts), contexts))
