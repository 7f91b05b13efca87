"""The generations of a run: which there are to make, in which order, and the record of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from specalign.analysis.plan import generation_seed, in_turns, shuffled
from specalign.analysis.summary import divergent
from specalign.benchmarks.config import BenchConfig
from specalign.benchmarks.suite import Suite
from specalign.data import Prompt
from specalign.decoding import Drafter
from specalign.decoding.divergence import classify_divergence
from specalign.decoding.verification import LOSSY
from specalign.records import GenerationRecord, RecordKey, record_key
from specalign.results import ALONE, TARGET

TIE_TOLERANCE = 1e-4
"""Logits closer than this are a tie: rounding decides between them."""


@dataclass(frozen=True)
class Cell:
    """One generation to make."""

    order: int
    prompt: Prompt
    method: str
    temperature: float
    gamma: int
    repeat: int
    seed: int
    turn: int = 0

    @property
    def key(self) -> RecordKey:
        """What identifies it in the records."""
        return self.prompt.id, self.method, self.temperature, self.gamma, self.repeat, self.turn


def cells(suite: Suite, config: BenchConfig) -> list[Cell]:
    """All generations, in one seeded random order over prompts, methods, temperatures, gammas and repeats.

    Interleaving spreads a machine's drift evenly over the methods. The turns of a conversation follow each other. A
    generation's seed depends on what it is, not on its place.
    """
    gammas = {method: _gammas(config, method, drafter) for method, drafter in suite.drafters.items()}
    return plan_cells(suite.prompts, gammas, config)


def plan_cells(
    prompts: Sequence[Prompt], gammas: Mapping[str, Sequence[int]], config: BenchConfig
) -> list[Cell]:
    """The same for methods and their draft lengths."""
    decoding = config.decoding
    plan = shuffled(prompts, gammas, decoding.temperatures, decoding.repeats, config.seed)
    return [
        Cell(order, prompt, *what, seed=generation_seed(config.seed, prompt.id, what, turn), turn=turn)
        for order, (prompt, what, turn) in enumerate(in_turns(plan, lambda prompt: 1 + len(prompt.later)))
    ]


def _gammas(config: BenchConfig, method: str, drafter: Drafter | None) -> tuple[int, ...]:
    """Draft lengths of a method's generations; 0: plain, or a drafter on its own."""
    if method == TARGET:
        return (0,)
    if is_adaptive(drafter):
        return (max(config.decoding.gammas),)
    alone = config.decoding.student_alone and drafter is not None and drafter.alone is not None
    return (*config.decoding.gammas, *((0,) if alone else ()))


def is_adaptive(drafter: Drafter | None) -> bool:
    """Whether it decides on the length of its drafts."""
    return drafter is not None and drafter.adaptive is not None


def new_record(suite: Suite, config: BenchConfig, cell: Cell, **outcome: Any) -> GenerationRecord:
    """The record of a generation with its prompt's length and what came of it, by field."""
    drafter = suite.drafters[cell.method]
    plain = drafter is None
    alone = cell.gamma == 0 and not plain
    rule = "none" if plain else ALONE if alone else "greedy" if cell.temperature == 0 else config.decoding.rule
    return GenerationRecord(
        method=cell.method,
        prompt_id=cell.prompt.id,
        category=cell.prompt.category,
        repeat=cell.repeat,
        order=cell.order,
        temperature=cell.temperature,
        top_k=config.decoding.top_k,
        top_p=config.decoding.top_p,
        gamma=cell.gamma,
        adaptive=is_adaptive(drafter),
        hybrid=drafter is not None and drafter.kind == "hybrid",
        rule=rule,
        lossless=not alone and rule not in LOSSY,
        seed=cell.seed,
        reference=cell.prompt.later[cell.turn - 1].reference if cell.turn else cell.prompt.reference,
        turn=cell.turn,
        **outcome,
    )


def judge_divergences(
    target: PreTrainedModel, suite: Suite, records: Sequence[GenerationRecord]
) -> dict[int, str]:
    """By ``order`` of the record: why a greedy output left the plain target's, by the target's own logits."""
    talks = suite.talks(records)
    return {
        ours.order: classify_divergence(
            target,
            talks.input_ids(record_key(ours)),
            ours.token_ids,
            theirs.token_ids,
            gamma=ours.gamma,
            tolerance=TIE_TOLERANCE,
        )
        for ours, theirs in divergent(records)
    }
