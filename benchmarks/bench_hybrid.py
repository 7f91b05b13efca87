"""What a composition of copies and a head is expected to reach along a run's outputs, and which part drafted: counts.

    python benchmarks/bench_hybrid.py --run reports/2026-11-27_copying-chat_cpu-2core \\
        --head runs/heads/head_jsd/seed-0 --drafts chat.json --output FILE.json

The greedy outputs are the run's own. What the head drafts before each of their tokens is decoded once, into --drafts;
then ``suffix_lookup`` and the composition draft along the outputs in the order of the run, and a step costs what the
run's own probes say (``DraftCosts``), reading the prompt what it took there. The composition is replayed twice: each
request anew, and knowing the earlier ones (``Hybrid.learned``). Everything here is arithmetic on acceptance.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from pydantic import TypeAdapter

from specalign.benchmarks.adaptive import costs_by_calls
from specalign.benchmarks.config import BenchConfig
from specalign.benchmarks.suite import load_prompts
from specalign.decoding import (
    DraftCosts,
    Drafter,
    EagleDrafter,
    Hybrid,
    Step,
    Stepper,
    SuffixLookup,
    make_stepper,
)
from specalign.decoding.draft_length import DraftLengths
from specalign.decoding.drafters import Draft, Drafting, Kind, MakeStepper, TokenByToken, nothing
from specalign.decoding.hybrid import costs_of
from specalign.decoding.model_rows import confidence
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session
from specalign.files import write_json
from specalign.models.eagle import load_head
from specalign.models.load import load_model, load_tokenizer
from specalign.run_files import RunFiles, read_run

GREEDY = Sampling(0.0)
CPU = torch.device("cpu")
NAMES = ("suffix_lookup", "head", "hybrid")
"""Methods of the run."""


@dataclass
class Tally:
    """A replay's sums over all requests."""

    cost: float = 0.0
    """Plain steps, reading the prompts included."""
    steps: int = 0
    copies: int = 0
    copied: int = 0
    """Copied tokens that were accepted."""
    drafts: int = 0
    """Of the head."""
    drafted: int = 0
    """Its tokens that were accepted."""
    trials: int = 0
    readings: int = 0
    """Requests in which the head read the prompt."""


@dataclass(frozen=True)
class Told:
    """A head whose drafts are known beforehand, one text's."""

    kind: ClassVar[Kind] = "model"
    reads: ClassVar[tuple[int, ...]] = ()
    alone: ClassVar[Stepper | None] = None
    adaptive: DraftCosts | None
    drafts: Sequence[tuple[list[int], list[float]]] = field(repr=False)
    """Before each token of the output: ids, and the head's probability of each."""

    def with_costs(self, costs: DraftCosts | None) -> Told:
        """The same with draft lengths by ``costs``."""
        return replace(self, adaptive=costs)

    def made_ready(self, make: MakeStepper) -> Told:
        """As it is."""
        return self

    def start(
        self, prompts: Sequence[Sequence[int]], n_new: int, sampling: Sampling, target: Session
    ) -> Drafting:
        """Begin one text."""
        assert self.adaptive
        return _Telling(self.drafts, len(prompts[0]), DraftLengths(self.adaptive, 1))


@dataclass
class _Telling:
    drafts: Sequence[tuple[list[int], list[float]]]
    n_prompt: int
    lengths: DraftLengths | None

    def ready(self) -> None:
        """Nothing is read."""

    def keep(self, rows: Sequence[int]) -> None:
        """There is one row."""

    def promise(self, sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> list[float]:
        """By the mean acceptance so far."""
        assert self.lengths
        return self.lengths.promise(limits)

    def draft(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], generator: torch.Generator | None
    ) -> Draft:
        """As ``TokenByToken`` does."""
        assert self.lengths
        self.lengths.settle(sequences)
        self.lengths.begin(limits)
        ids, trust = self.drafts[len(sequences[0]) - self.n_prompt]
        n = 0
        while n < limits[0] and self.lengths.go_on():
            self.lengths.drafted([trust[n]])
            n += 1
        return Draft(torch.tensor([ids[:n]]), [n], None) if n else nothing(1, CPU)


def main() -> None:
    """Print and write all of it."""
    parser = argparse.ArgumentParser(description="What a composition is expected to reach, by counting.")
    parser.add_argument("--run", type=Path, required=True, help="a run of benchmarks/copying.toml")
    parser.add_argument("--head", type=Path, required=True, help="the head of that run")
    parser.add_argument("--drafts", type=Path, required=True, help="its drafts; written where it is missing")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    run = read_run(arguments.run)
    if not arguments.drafts.is_file():
        write_json(arguments.drafts, drafted(run, arguments.head))
    texts = {row["id"]: row for row in json.loads(arguments.drafts.read_text(encoding="utf-8"))["rows"]}
    order = [record.prompt_id for record in run.records if record.method == "hybrid"]
    found = {"run": arguments.run.name, **replayed([texts[name] for name in order], run)}
    print(json.dumps(found, indent=1))
    if arguments.output:
        write_json(arguments.output, found)


@torch.inference_mode()
def drafted(run: RunFiles, path: Path) -> dict[str, Any]:
    """Prompt and greedy output of each request, and before each token of it what the head drafts."""
    config = TypeAdapter(BenchConfig).validate_python(run.result.config)
    gamma = max(config.decoding.gammas)
    tokenizer, model = load_tokenizer(config.target.model), load_model(config.target.model, dtype=torch.float32)
    target, drafter = make_stepper(model), EagleDrafter(load_head(str(path)))
    outputs = {record.prompt_id: record.token_ids for record in run.records if record.method == "target"}
    rows = []
    for prompt in load_prompts(config, tokenizer):
        text, drafts = list(prompt.input_ids), []
        session = Session.start(target, [text], len(outputs[prompt.id]) + gamma + 1, reads=drafter.reads)
        drafting = drafter.start([text], len(outputs[prompt.id]) + gamma + 1, GREEDY, session)
        assert isinstance(drafting, TokenByToken)
        for token in outputs[prompt.id]:
            drafts.append(_draft(drafting, text, gamma))
            session.extend(torch.tensor([text[-1:]]))
            text = [*text, token]
        rows.append(
            {"id": prompt.id, "prompt": list(prompt.input_ids), "output": outputs[prompt.id], "head": drafts}
        )
    return {"rows": rows}


def _draft(drafting: TokenByToken, text: list[int], gamma: int) -> tuple[list[int], list[float]]:
    rows, ids, trust = drafting.rows, list[int](), list[float]()
    rows.within_context([text], [gamma])
    logits = rows.begin([text])
    for _ in range(gamma):
        token = rows.ids.likeliest(logits)
        ids.append(int(token))
        trust.append(float(confidence(logits, None, token)))
        logits = rows.follow(token.unsqueeze(1))
    return ids, trust


def replayed(texts: Sequence[dict[str, Any]], run: RunFiles) -> dict[str, Any]:
    """Costs, tallies, and how many times as fast as suffix_lookup the composition should be, prompts included."""
    gamma = max(run.result.config["decoding"]["gammas"])
    costs = {name: costs_by_calls(run.probes, name, 0.0, gamma=gamma, most=gamma) for name in NAMES[:2]}
    plain, reading, more = prompts_of(run)
    copy = SuffixLookup(costs["suffix_lookup"])
    alone, anew, knowing = Tally(), Tally(), Tally()
    known = None
    for text in texts:
        hybrid = Hybrid((copy, Told(costs["head"], text["head"])))
        replay(copy, text, gamma, alone)
        replay(hybrid, text, gamma, anew)
        told = replace(hybrid, known=known)
        known = told.learned([replay(told, text, gamma, knowing)]).known
    for tally in (anew, knowing):
        tally.cost += more * tally.readings
    whole = alone.cost + reading
    return {
        "costs": {name: asdict(each) for name, each in costs.items()},
        "plain_step_s": plain,
        "prompts": {"target": reading, "head_each": more},
        "suffix_lookup": asdict(alone),
        "hybrid_anew": {**asdict(anew), "times_as_fast": whole / (anew.cost + reading)},
        "hybrid": {**asdict(knowing), "times_as_fast": whole / (knowing.cost + reading)},
    }


def prompts_of(run: RunFiles) -> tuple[float, float, float]:
    """Seconds of a plain step; plain steps for all prompts by the target, and for one prompt more by the head."""
    own = {name: [record for record in run.records if record.method == name] for name in ("target", *NAMES)}
    plain = mean(s for record in own["target"] if record.steps for s in record.steps.verify_s)
    prefill = {name: sum(record.prefill_s for record in records) / plain for name, records in own.items()}
    return plain, prefill["target"], max(0.0, prefill["head"] - prefill["target"]) / len(own["target"])


def replay(drafter: Drafter, text: dict[str, Any], gamma: int, tally: Tally) -> list[Step]:
    """Draft along an output as greedy decoding would; adds to the tally and returns the steps."""
    target: Any = SimpleNamespace(model=SimpleNamespace(device=CPU))  # all that copying asks of it
    sequence, output = list(text["prompt"]), text["output"]
    drafting = drafter.start([sequence], len(output) + gamma + 1, GREEDY, target)
    parts = costs_of(drafter)
    steps: list[Step] = []
    place = 0
    while place < len(output):
        draft = drafting.draft([sequence], [min(gamma, len(output) - place - 1)], None)
        ids = draft.ids[0, : draft.counts[0]].tolist()
        right = next((n for n, token in enumerate(ids) if token != output[place + n]), len(ids))
        emitted, examined = output[place : place + right + 1], min(right + 1, len(ids))
        sequence, place = [*sequence, *emitted], place + len(emitted)
        origin = draft.origins[0] if draft.origins else None
        if origin:
            origin = replace(origin, classes=origin.classes[:examined])
        steps.append(Step(len(ids), examined, right, len(emitted), (), 0.0, 0.0, 0.0, origin=origin))
        tally.cost += parts[max(0, origin.part) if origin else 0].cost(len(ids))
    by_head = [step for step in steps if step.origin and step.origin.part == 1]
    tally.steps += len(steps)
    tally.drafts, tally.drafted = (
        tally.drafts + len(by_head),
        tally.drafted + sum(s.n_accepted for s in by_head),
    )
    tally.copies += sum(step.n_drafted > 0 for step in steps) - len(by_head)
    tally.copied += sum(step.n_accepted for step in steps) - sum(step.n_accepted for step in by_head)
    tally.trials += sum(step.origin is not None and step.origin.price > 0 for step in steps)
    tally.readings += bool(by_head)
    return steps


if __name__ == "__main__":
    main()
