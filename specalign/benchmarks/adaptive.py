"""Drafters of adaptive length beside those of a fixed one, by call times measured before anything is decoded."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from specalign.analysis.prediction import CallTimes, call_seconds, mean_call_seconds, target_seconds
from specalign.benchmarks.calls import call_probes
from specalign.benchmarks.config import ADAPTIVE, BenchConfig
from specalign.benchmarks.suite import Suite
from specalign.decoding import DraftCosts, Drafter, ModelDrafter
from specalign.probes import Probe
from specalign.progress import progress_bar

ROUNDS = 3
"""Times that the calls are timed, each after one of the run's three contexts; a round before them warms up."""


def with_adaptive(suite: Suite, config: BenchConfig) -> Suite:
    """The suite with NAME_adaptive after each drafter that is a model, where the config asks for it."""
    models = {name: drafter for name, drafter in suite.drafters.items() if isinstance(drafter, ModelDrafter)}
    if not config.decoding.adaptive or not models:
        return suite
    probes = _timed(suite, config)
    drafters: dict[str, Drafter | None] = {}
    for name, drafter in suite.drafters.items():
        drafters[name] = drafter
        if isinstance(drafter, ModelDrafter):
            drafters[name + ADAPTIVE] = replace(drafter, adaptive=_costs(name, config, probes))
    infos = [[info, replace(info, name=info.name + ADAPTIVE)] for info in suite.drafter_infos]
    return replace(suite, drafters=drafters, drafter_infos=[info for pair in infos for info in pair])


def adaptive_costs(suite: Suite) -> dict[str, dict[str, Any]]:
    """Method -> the costs that its draft lengths follow from, for the provenance."""
    return {
        name: asdict(drafter.adaptive)
        for name, drafter in suite.drafters.items()
        if isinstance(drafter, ModelDrafter) and drafter.adaptive
    }


def _timed(suite: Suite, config: BenchConfig) -> list[Probe]:
    probes: list[Probe] = []
    with progress_bar("timing calls for adaptive drafts", ROUNDS) as bar:
        call_probes(suite, config, 0)
        for number in range(ROUNDS):
            probes += call_probes(suite, config, number)
            bar.advance()
    return probes


def _costs(name: str, config: BenchConfig, probes: list[Probe]) -> DraftCosts:
    gamma, temperature = max(config.decoding.gammas), config.decoding.temperatures[0]
    verification = target_seconds(probes, name)
    target = [_seconds(probes, verification, n) for n in range(1, gamma + 2)]
    return DraftCosts.measured(_seconds(probes, call_seconds(probes, name, temperature), gamma) / gamma, target)


def _seconds(probes: list[Probe], calls: CallTimes | None, n_tokens: int) -> float:
    seconds = mean_call_seconds(probes, calls, n_tokens)
    assert seconds is not None, "these calls were timed"
    return seconds
