"""What copying costs a token, and what copies would have saved along greedy outputs, by length of match.

    python benchmarks/bench_copying.py --spec-bench question.jsonl --prompts 10 --texts texts.json --output FILE.json

The cost: seconds per token of the suffix index over texts of 100 to 100,000 tokens. The replay: greedy outputs of the
built-in target after three kinds of prompts (Spec-Bench's summaries, its questions, and rewriting functions of the
standard library) are decoded once, into --texts; then prompt lookup and suffix lookup draft along them, step by step,
and a step costs what the cost model says (``VERIFY``: a compiled target's calls on 1, 2, ... tokens, in plain steps).
Speed-ups here are arithmetic on acceptance, not times.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from specalign.decoding import DraftCosts, Drafter, PromptLookup, SuffixIndex, SuffixLookup, generate
from specalign.decoding.sampling import Sampling
from specalign.files import write_json
from specalign.models.load import load_model, load_tokenizer

VERIFY = (1.0, 1.12, 1.17, 1.22, 1.28, 1.33, 1.38, 1.43, 1.48)
COSTS = DraftCosts(0.0, VERIFY)
GAMMAS = (1, 2, 3, 4, 6, 8)
SIZES = (100, 1_000, 10_000, 100_000)
MODULES = "textwrap shutil argparse tempfile csv calendar difflib fractions heapq statistics shlex"
LONGEST_PROMPT = 900
Text = tuple[list[int], list[int]]
"""Prompt and greedy output."""


@dataclass
class Tally:
    """A replay's sums."""

    tokens: int = 0
    cost: float = 0.0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    def figures(self) -> dict[str, float]:
        """Speed-up over plain decoding, tokens per step, accepted over drafted."""
        return {
            "speedup": self.tokens / self.cost,
            "tau": self.tokens / self.steps,
            "accepted_per_drafted": self.accepted / max(1, self.drafted),
        }


def main() -> None:
    """Print and write all of it."""
    parser = argparse.ArgumentParser(description="The cost and the gain of copying.")
    parser.add_argument("--spec-bench", type=Path, required=True, help="Spec-Bench's question.jsonl")
    parser.add_argument("--prompts", type=int, default=10, help="prompts of each kind")
    parser.add_argument(
        "--texts", type=Path, required=True, help="decoded outputs; written where it is missing"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if not arguments.texts.is_file():
        write_json(arguments.texts, decoded(prompts_of(arguments.spec_bench, arguments.prompts)))
    texts: dict[str, list[Text]] = json.loads(arguments.texts.read_text(encoding="utf-8"))
    found = {
        "verify": VERIFY,
        "microseconds_per_token": {str(n): microseconds(n) for n in SIZES},
        "replay": {kind: replayed(rows) for kind, rows in texts.items()},
        "acceptance_by_match": by_match([text for rows in texts.values() for text in rows]),
    }
    print(json.dumps(found, indent=1))
    if arguments.output:
        write_json(arguments.output, found)


def prompts_of(spec_bench: Path, n: int) -> dict[str, list[str]]:
    """The user's messages of each kind."""
    rows = [json.loads(line) for line in spec_bench.read_text(encoding="utf-8").splitlines()]
    asked: dict[str, list[str]] = {"summaries": [], "chat": []}
    for row in rows:
        kind = {"summarization": "summaries", "qa": "chat", "writing": "chat", "reasoning": "chat"}.get(
            row["category"]
        )
        if kind:
            asked[kind].append(row["turns"][0])
    functions = [source for name in MODULES.split() for source in sources(name)]
    random.Random(0).shuffle(functions)
    code = [f"Rewrite this Python function with type hints:\n\n```python\n{source}```" for source in functions]
    chat = asked["chat"][:: max(1, len(asked["chat"]) // n)]
    return {"summaries": asked["summaries"][:n], "chat": chat[:n], "code": code[:n]}


def sources(module: str) -> list[str]:
    """Functions of a module of the standard library, of 200 to 1,500 characters."""
    own = import_module(module)
    functions = [value for _, value in sorted(vars(own).items()) if inspect.isfunction(value)]
    found = [inspect.getsource(function) for function in functions if function.__module__ == module]
    return [source for source in found if 200 < len(source) < 1500]


def decoded(prompts: dict[str, list[str]]) -> dict[str, list[Text]]:
    """Greedy outputs of at most 96 tokens."""
    tokenizer, model = load_tokenizer("builtin:smollm2"), load_model("builtin:smollm2")
    found: dict[str, list[Text]] = {}
    for kind, messages in prompts.items():
        chats = [[{"role": "user", "content": message}] for message in messages]
        encoded = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
        ids = [list(row)[-LONGEST_PROMPT:] for row in encoded]  # type: ignore[arg-type]
        outputs = generate(model, None, ids, max_new_tokens=96).token_ids
        found[kind] = list(zip(ids, outputs, strict=True))
    return found


def microseconds(n: int) -> float:
    """Per token of an index over ``n`` tokens in which every second stretch was seen before; the best of three."""
    half = [random.Random(0).randrange(500) for _ in range(n // 2)]
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        SuffixIndex(half + half)
        times.append(time.perf_counter() - begin)
    return 1e6 * min(times) / n


def replayed(texts: Sequence[Text]) -> dict[str, dict[str, dict[str, float]]]:
    """gamma -> drafter -> figures."""
    drafters: dict[str, Drafter] = {"prompt_lookup": PromptLookup(), "suffix_lookup": SuffixLookup(COSTS)}
    return {
        str(gamma): {name: replay(texts, drafter, gamma).figures() for name, drafter in drafters.items()}
        for gamma in GAMMAS
    }


def replay(texts: Sequence[Text], drafter: Drafter, gamma: int) -> Tally:
    """Draft along every output as greedy decoding would."""
    target: Any = SimpleNamespace(
        model=SimpleNamespace(device=torch.device("cpu"))
    )  # all that copying asks of it
    tally = Tally()
    for prompt, output in texts:
        drafting = drafter.start([prompt], len(output), Sampling(0.0), target)
        sequence, place = list(prompt), 0
        while place < len(output):
            draft = drafting.draft([sequence], [min(gamma, len(output) - place - 1)], None)
            ids = draft.ids[0, : draft.counts[0]].tolist()
            right = next((n for n, token in enumerate(ids) if token != output[place + n]), len(ids))
            emitted = output[place : place + right + 1]
            sequence, place = [*sequence, *emitted], place + len(emitted)
            tally.steps, tally.tokens = tally.steps + 1, tally.tokens + len(emitted)
            tally.cost += COSTS.cost(len(ids))
            tally.drafted, tally.accepted = tally.drafted + len(ids), tally.accepted + right
    return tally


def by_match(texts: Sequence[Text]) -> dict[str, dict[str, Any]]:
    """Share of first copied tokens that were right, by the length of the match that they follow."""
    counts: dict[int, list[int]] = {}
    for prompt, output in texts:
        index = SuffixIndex(prompt)
        for token in output:
            match = index.match
            copied = next(index.continuation(match), None)
            if copied:
                seen = counts.setdefault(min(match.length, 9), [0, 0])
                seen[0], seen[1] = seen[0] + (copied[0] == token), seen[1] + 1
            index.append(token)
    return {
        f"{length}{'+' if length == 9 else ''}": {"share": right / n, "n": n}
        for length, (right, n) in sorted(counts.items())
    }


if __name__ == "__main__":
    main()
