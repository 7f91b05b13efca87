"""What quantising the target does to verification: T(q), the time of one call on q positions, by kind of weights.

    python benchmarks/bench_quantised.py benchmarks/results/<date>_quantised_<hardware>.json

SmolLM2-135M-Instruct as float32, NF4 and int8 (bitsandbytes) at a context of 200 tokens: about 3 minutes on 2 CPU
cores, 3 GB. Every round times every kind at every q once, in a new random order, after one unrecorded call of the
same sort; the file holds all seconds, their medians, T(q) / T(1), and how much of the float32 model's distribution
each kind keeps (mean over positions of sum_v min(p, q), teacher-forced on one of the interpreter's docstrings).
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from specalign import provenance
from specalign.data import load_examples
from specalign.decoding.session import Session
from specalign.decoding.stepper import make_stepper
from specalign.files import write_json
from specalign.losses import overlap
from specalign.models.load import Quantization, load_model, load_tokenizer

MODEL = "builtin:smollm2"
Models = dict[Quantization, PreTrainedModel]
KINDS: tuple[Quantization, ...] = ("none", "4bit", "8bit")
Q = (1, 2, 3, 4, 5, 6, 8)
CONTEXT, ROUNDS = 200, 12


def prompt_ids() -> list[int]:
    """The beginning of a long text."""
    texts = (example.document for example in load_examples("builtin:docstrings", "test", limit=20))
    return list(load_tokenizer(MODEL)("\n".join(texts))["input_ids"])[:CONTEXT]


def seconds_of_a_call(session: Session, ids: torch.Tensor) -> float:
    """One call on the ids, after one unrecorded one; the session stays as it was."""
    before = list(session.lengths)
    for _ in range(2):
        begun = time.perf_counter()
        session.extend(ids)
        passed = time.perf_counter() - begun
        session.rollback(before)
    return passed


@torch.inference_mode()
def measure(
    models: dict[Quantization, PreTrainedModel], prompt: list[int]
) -> dict[Quantization, dict[int, list[float]]]:
    """Kind -> q -> seconds, one a round."""
    sessions = {kind: Session.start(make_stepper(model), [prompt], max(Q)) for kind, model in models.items()}
    seconds: dict[Quantization, dict[int, list[float]]] = {kind: {q: [] for q in Q} for kind in models}
    jobs = [(kind, q) for kind in models for q in Q]
    for number in range(ROUNDS):
        random.Random(number).shuffle(jobs)
        for kind, q in jobs:
            seconds[kind][q].append(seconds_of_a_call(sessions[kind], torch.tensor([prompt[-q:]])))
    return seconds


@torch.inference_mode()
def overlaps(models: Models, prompt: list[int]) -> dict[str, float]:
    """Kind -> mean overlap with the full model's next-token distributions."""
    logits = {kind: model(torch.tensor([prompt])).logits[0].float() for kind, model in models.items()}
    return {kind: float(overlap(mine, logits["none"]).mean()) for kind, mine in logits.items()}


def main(path: Path) -> None:
    """Measure and write the file."""
    stamp = provenance.stamp()
    prompt = prompt_ids()
    models: Models = {kind: load_model(MODEL, quantization=kind) for kind in KINDS}
    found: dict[str, Any] = {}
    kept = overlaps(models, prompt)
    for kind, by_q in measure(models, prompt).items():
        medians = {q: median(values) for q, values in by_q.items()}
        found[kind] = {
            "median_s": {str(q): value for q, value in medians.items()},
            "ratio_to_one": {str(q): value / medians[1] for q, value in medians.items()},
            "overlap_with_float32": kept[kind],
            "weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in models[kind].parameters()),
            "seconds": {str(q): values for q, values in by_q.items()},
        }
    write_json(path, {"model": MODEL, "context": CONTEXT, "rounds": ROUNDS, "kinds": found, **stamp})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
