"""Drafters that weigh what a draft costs: adaptive lengths and compositions, by call times measured before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from specalign.analysis.prediction import CallTimes, call_seconds, mean_call_seconds, target_seconds
from specalign.benchmarks.calls import call_probes, timed_lengths
from specalign.benchmarks.config import BenchConfig, composed
from specalign.benchmarks.suite import Suite
from specalign.decoding import DraftCosts, Drafter, Hybrid
from specalign.decoding.hybrid import costs_of
from specalign.probes import Probe
from specalign.progress import progress_bar
from specalign.results import ADAPTIVE

ROUNDS = 3
"""Times that the calls are timed, each after one of the run's three contexts; a round before them warms up."""


def with_costs(suite: Suite, config: BenchConfig) -> Suite:
    """The suite with measured costs where a drafter decides by them.

    NAME_adaptive follows each drafter that is a model, where the config asks for it, and compositions come last.
    """
    named = {name: drafter for name, drafter in suite.drafters.items() if drafter}
    doubled = {name for name, drafter in named.items() if config.decoding.adaptive and drafter.kind == "model"}
    parts = composed(config)
    weighing = doubled | {name for pair in parts.values() for name in pair}
    weighing |= {name for name, drafter in named.items() if drafter.adaptive}
    if not weighing:
        return suite
    probes = _timed(suite, config)
    costs = {name: named[name].with_costs(_costs(name, named[name], config, probes)) for name in weighing}
    drafters: dict[str, Drafter | None] = {}
    for name, drafter in suite.drafters.items():
        drafters[name] = costs[name] if drafter and drafter.adaptive else drafter
        if name in doubled:
            drafters[name + ADAPTIVE] = costs[name]
    drafters |= {name: Hybrid(tuple(costs[part] for part in pair)) for name, pair in parts.items()}
    infos = [
        [info, *([replace(info, name=info.name + ADAPTIVE)] if info.name in doubled else [])]
        for info in suite.drafter_infos
    ]
    return replace(suite, drafters=drafters, drafter_infos=[info for group in infos for info in group])


def adaptive_costs(suite: Suite) -> dict[str, dict[str, Any]]:
    """Method -> the costs that its draft lengths follow from, of a composition each part's, for the provenance."""
    deciding = {name: drafter for name, drafter in suite.drafters.items() if drafter and drafter.adaptive}
    costs = {name: [asdict(each) for each in costs_of(drafter)] for name, drafter in deciding.items()}
    return {
        name: {"parts": costs[name]} if drafter.kind == "hybrid" else costs[name][0]
        for name, drafter in deciding.items()
    }


def _timed(suite: Suite, config: BenchConfig) -> list[Probe]:
    probes: list[Probe] = []
    with progress_bar("timing calls for adaptive drafts", ROUNDS) as bar:
        call_probes(suite, config, 0)
        for number in range(ROUNDS):
            probes += call_probes(suite, config, number)
            bar.advance()
    return probes


def _costs(name: str, drafter: Drafter, config: BenchConfig, probes: list[Probe]) -> DraftCosts:
    gamma = max(config.decoding.gammas)
    most = timed_lengths(drafter, gamma)[-1]
    return costs_by_calls(probes, name, config.decoding.temperatures[0], gamma=gamma, most=most)


def costs_by_calls(
    probes: Sequence[Probe], name: str, temperature: float, *, gamma: int, most: int
) -> DraftCosts:
    """By the calls that draft 1, ..., ``most`` tokens, on a line between those that were timed, and the target's on
    1, ..., gamma + 1."""
    calls, verification = call_seconds(probes, name, temperature), target_seconds(probes, name)
    target = [_seconds(probes, verification, n) for n in range(1, gamma + 2)]
    return DraftCosts.measured([_seconds(probes, calls, n) for n in range(1, most + 1)], target)


def _seconds(probes: Sequence[Probe], calls: CallTimes | None, n_tokens: int) -> float:
    seconds = mean_call_seconds(probes, calls, n_tokens)
    assert seconds is not None, "these calls were timed"
    return seconds
