"""The decoding loop against its bars: overhead, Hugging Face's assisted generation, the calls alone, batches.

    python benchmarks/bench_decoding.py --drafter FOLDER --output FILE [--compiled]

Everything alternates, prompt by prompt, in one process; ratios are of total seconds over the same prompts and tokens.
About 20 minutes on 2 CPU cores with `--compiled`. Nothing else should run.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bars import ceilings, judged
from transformers import PreTrainedModel

from specalign.data import encode_prompts, load_examples
from specalign.decoding import DraftCosts, ModelDrafter, Shapes, Stepper, generate, make_stepper
from specalign.decoding.clock import Clock
from specalign.decoding.session import Session
from specalign.files import write_json
from specalign.models.heads import Head
from specalign.models.load import load_model, load_tokenizer, resolve_device, resolve_dtype
from specalign.models.packing import can_pack
from specalign.models.tiny import make_model, perturbed
from specalign.provenance import BusyMeter, stamp
from specalign.templates import prompt_text

GAMMA = 4
CAPACITY = 320
BARS = {
    "eager: share of the decode phase outside the models' forward calls, at most": 0.03,
    "eager: Hugging Face assisted seconds over ours, at least": 1.0,
    "compiled: Hugging Face assisted seconds over ours, at least": 2.0,
    "compiled: Hugging Face plain seconds over ours, both after the first token, at least": 2.0,
    "compiled: the forward calls alone over the decode phase, at least": 0.95,
    "tiny: tokens per second of batch 8 over batch 1, at least": 4.0,
}
Prompts = list[list[int]]
Job = Callable[[Sequence[int]], list[int]]


def main() -> int:
    """Measure, write, and hold the figures against the bars; exit code 1 where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="builtin:smollm2")
    parser.add_argument(
        "--drafter", required=True, help="a drafter with the target's vocabulary; its full head is used"
    )
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 on CUDA, else float32")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    provenance, load = stamp(str(device)) | ceilings(device, dtype), BusyMeter()
    target = load_model(args.target, dtype=dtype, device=device)
    drafter = load_model(args.drafter, dtype=dtype, device=device)
    prompts = _prompts(args.target, args.prompts)
    measured = compared(target, drafter, prompts, args)
    measured["tiny"] = {"batch_8_over_batch_1": batching(device)}
    verdicts = verdicts_on(measured)
    settings = {"gamma": GAMMA, "target": args.target, "drafter": args.drafter, "prompts": len(prompts)}
    settings |= {"dtype": str(dtype), "max_new_tokens": args.tokens, "repeats": args.repeats}
    write_json(
        args.output,
        {"provenance": provenance, "busy_during": load.others(), **settings, "verdicts": verdicts, **measured},
    )
    print(json.dumps(verdicts, indent=1))
    return int(not all(verdict["met"] for verdict in verdicts))


def _prompts(target: str, n: int) -> Prompts:
    examples = load_examples("builtin:docstrings", "test", limit=n)
    message = prompt_text("", "builtin:docstrings")
    encoded = encode_prompts(examples, load_tokenizer(target), prompt=message, max_prompt_tokens=128)
    return [list(prompt.input_ids) for prompt in encoded]


@torch.inference_mode()
def compared(
    target: PreTrainedModel, drafter: PreTrainedModel, prompts: Prompts, args: argparse.Namespace
) -> dict[str, Any]:
    """Every way to decode, in turn on each prompt; then what our own ways consist of."""
    eager = make_stepper(target), ModelDrafter(drafter)
    runtimes: dict[str, tuple[Stepper, ModelDrafter]] = {"eager": eager}
    if args.compiled:
        runtimes["compiled"] = (
            make_stepper(target, "compiled", shapes=Shapes((1, GAMMA + 1), CAPACITY)),
            ModelDrafter(drafter, stepper=make_stepper(drafter, "compiled", shapes=Shapes((1, 2), CAPACITY))),
        )
    if can_pack(target.get_output_embeddings().weight):
        packed_drafter = copy.deepcopy(drafter)
        packed = make_stepper(copy.deepcopy(target), "packed")
        runtimes["packed"] = (
            packed,
            ModelDrafter(packed_drafter, stepper=make_stepper(packed_drafter, "packed")),
        )
    jobs = {"transformers assisted": assisted(target, drafter, args.tokens)}
    jobs["transformers plain"] = assisted(target, None, args.tokens)
    jobs["transformers first token"] = assisted(target, None, 1)
    costs = {name: step_costs(*pair, prompts[0]) for name, pair in runtimes.items()}
    for name, (stepper, draft) in runtimes.items():
        jobs[f"{name} plain"] = ours(stepper, None, args.tokens)
        jobs[f"{name} first token"] = ours(stepper, None, 1)
        jobs[f"{name} speculative"] = ours(stepper, draft, args.tokens)
        adaptive = replace(draft, adaptive=costs[name])
        jobs[f"{name} adaptive"] = ours(stepper, adaptive, args.tokens)
    seconds, outputs = alternate(jobs, prompts, args.repeats)
    same = {
        name: sum(a == b for a, b in zip(ids, outputs["eager plain"], strict=True))
        for name, ids in outputs.items()
        if "first token" not in name
    }
    total = {name: sum(map(statistics.median, times)) for name, times in seconds.items()}
    return {
        "seconds": total,
        "outputs_equal_to_eager_plain": same,
        "decode": {name: anatomy(*pair, prompts, args.tokens, args.repeats) for name, pair in runtimes.items()},
        "raw_seconds": seconds,
    }


def assisted(target: PreTrainedModel, drafter: PreTrainedModel | None, n: int) -> Job:
    """transformers' greedy decoding, assisted with a constant gamma and no confidence threshold where drafted."""

    def run(prompt: Sequence[int]) -> list[int]:
        options: dict[str, Any] = {}
        if drafter is not None:
            config = drafter.generation_config
            config.num_assistant_tokens, config.num_assistant_tokens_schedule = GAMMA, "constant"
            config.assistant_confidence_threshold = 0.0
            options["assistant_model"] = drafter
        ids = torch.tensor([prompt], device=target.device)
        mask = torch.ones_like(ids)
        decode: Any = target.generate
        out = decode(ids, attention_mask=mask, do_sample=False, max_new_tokens=n, **options)
        return [int(token) for token in out[0, len(prompt) :]]

    return run


def ours(stepper: Stepper, drafter: ModelDrafter | None, n: int) -> Job:
    """specalign's."""
    return lambda prompt: generate(stepper, drafter, list(prompt), gamma=GAMMA, max_new_tokens=n).token_ids[0]


def alternate(
    jobs: dict[str, Job], prompts: Prompts, repeats: int
) -> tuple[dict[str, list[list[float]]], dict[str, list[list[int]]]]:
    """Seconds of every job by prompt, and its outputs; the first prompt warms every job up."""
    for job in jobs.values():
        job(prompts[0])
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in prompts] for name in jobs}
    outputs: dict[str, list[list[int]]] = {name: [] for name in jobs}
    for repeat in range(repeats):
        for place, prompt in enumerate(prompts):
            for name, job in jobs.items():
                begun = time.perf_counter()
                ids = job(prompt)
                seconds[name][place].append(time.perf_counter() - begun)
                if repeat == 0:
                    outputs[name].append(ids)
    return seconds, outputs


def anatomy(
    stepper: Stepper, drafter: ModelDrafter, prompts: Prompts, n: int, repeats: int
) -> dict[str, float]:
    """Of the decode phase of speculative decoding: seconds, those inside forward calls, those of the calls alone."""
    whole = inside = alone = 0.0
    for prompt in prompts:
        for _ in range(repeats):
            if stepper.compiled is None and stepper.device.type != "cuda":  # there calls end before their work
                with forward_seconds(stepper.model, drafter.model) as spent:
                    done = generate(stepper, drafter, prompt, gamma=GAMMA, max_new_tokens=n)
                inside += spent["decode"]
            else:
                done = generate(stepper, drafter, prompt, gamma=GAMMA, max_new_tokens=n)
            whole += done.decode_s
            alone += forward_calls_seconds(stepper, drafter, prompt, done.steps[0])
    found = {"decode_s": whole, "calls_alone_s": alone, "calls_alone_over_decode": alone / whole}
    return found | ({"outside_forward": 1 - inside / whole} if inside else {})


@contextmanager
def forward_seconds(*models: PreTrainedModel) -> Iterator[dict[str, float]]:
    """Seconds inside the models' decoders and heads, prefill (the first call of each) apart."""
    spent: dict[str, float] = defaultdict(float)
    calls: dict[int, int] = defaultdict(int)
    begun: list[float] = []
    plain = Head.__call__

    def before(module: torch.nn.Module, *_: object) -> None:
        begun.append(time.perf_counter())

    def after(module: torch.nn.Module, *_: object) -> None:
        calls[id(module)] += 1
        spent["prefill" if calls[id(module)] == 1 else "decode"] += time.perf_counter() - begun.pop()

    def head(self: Head, hidden: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        logits = plain(self, hidden)
        spent["decode"] += time.perf_counter() - start
        return logits

    decoders = [model.get_decoder() for model in models]
    hooks = [decoder.register_forward_pre_hook(before) for decoder in decoders]
    hooks += [decoder.register_forward_hook(after) for decoder in decoders]
    with patch.object(Head, "__call__", head):
        yield spent
    for hook in hooks:
        hook.remove()


def forward_calls_seconds(
    stepper: Stepper, drafter: ModelDrafter, prompt: Sequence[int], steps: Sequence[Any]
) -> float:
    """What these steps' forward calls take with nothing between them, in the order in which decoding makes them.

    The order matters: a call that is repeated by itself finds its weights in the processor's cache.
    """
    n_new = sum(step.n_emitted for step in steps) + 2 * GAMMA
    target = Session.start(stepper, [list(prompt)], n_new)
    small = Session.start(drafter.alone, [list(prompt)], n_new)
    ids = torch.full((1, GAMMA + 1), 100, device=target.model.device)
    clock = Clock(target.model.device)
    begun = clock.settle()
    for step in steps:
        (length,) = target.lengths
        (known,) = small.lengths
        pending = length + 1 - min(known, length)
        small.rollback([length + 1 - pending])
        for place in range(step.n_drafted):
            small.extend(ids[:, : pending if place == 0 else 1])
        target.extend(ids[:, : step.n_drafted + 1])
        target.rollback([length + step.n_emitted])
    return clock.settle() - begun


def call_seconds(session: Session, n: int, rounds: int = 12) -> float:
    """Median seconds of feeding n tokens."""
    ids, before = torch.full((1, n), 100, device=session.model.device), list(session.lengths)
    times, clock = [], Clock(session.model.device)
    for _ in range(rounds):
        begun = clock.settle()
        session.extend(ids)
        session.rollback(before)
        times.append(clock.settle() - begun)
    return statistics.median(times[2:])


def step_costs(stepper: Stepper, drafter: ModelDrafter, prompt: Sequence[int]) -> DraftCosts:
    """What an adaptive draft length needs to know, measured now."""
    target = Session.start(stepper, [list(prompt)], 2 * GAMMA)
    times = [call_seconds(target, n) for n in range(1, GAMMA + 2)]
    small = call_seconds(Session.start(drafter.alone, [list(prompt)], 2 * GAMMA), 1)
    return DraftCosts.measured([n * small for n in range(1, GAMMA + 1)], times)


@torch.inference_mode()
def batching(device: torch.device, rounds: int = 7) -> float:
    """Tokens per second of eight prompts at once over one by one, speculatively with tiny models."""
    target, near = make_model("llama").float(), perturbed(make_model("llama"), 0.05).float()
    for model in (target, near):
        torch.nn.Module.to(model, device)
    drafter = ModelDrafter(near)
    prompts = [[3 + (7 * row + place) % 30 for place in range(6 + row)] for row in range(8)]
    ratios = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for prompt in prompts:
            generate(target, drafter, prompt, gamma=GAMMA, max_new_tokens=40, eos=())
        alone = time.perf_counter() - begun
        begun = time.perf_counter()
        generate(target, drafter, prompts, gamma=GAMMA, max_new_tokens=40, eos=())
        ratios.append(alone / (time.perf_counter() - begun))
    return statistics.median(ratios)


def verdicts_on(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bar whose figure was measured."""
    seconds, decode = measured["seconds"], measured["decode"]
    found = [
        decode["eager"].get("outside_forward"),
        seconds["transformers assisted"] / seconds["eager speculative"],
    ]
    if "compiled" in decode:
        found += [
            seconds["transformers assisted"] / seconds["compiled speculative"],
            after_first_token(seconds, "transformers") / after_first_token(seconds, "compiled"),
            decode["compiled"]["calls_alone_over_decode"],
        ]
    else:
        found += [None] * 3
    found.append(measured["tiny"]["batch_8_over_batch_1"])
    return judged(BARS, found)


def after_first_token(seconds: dict[str, float], engine: str) -> float:
    """What plain decoding takes without the prompt, which every engine reads eagerly."""
    return seconds[f"{engine} plain"] - seconds[f"{engine} first token"]


if __name__ == "__main__":
    sys.exit(main())
