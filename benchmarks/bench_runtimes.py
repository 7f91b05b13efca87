"""One target call of n tokens under each runtime, alternating: the ratio that decides whether drafting pays.

    python benchmarks/bench_runtimes.py --output FILE [--compiled]

About 8 minutes on 2 CPU cores, most of it compilation; `--compiled` without numbers leaves that out: half a minute.
Nothing else should run.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bars import ceilings

from specalign.decoding import Shapes, make_stepper
from specalign.decoding.session import Session
from specalign.files import write_json
from specalign.models.load import load_model, resolve_device, resolve_dtype
from specalign.models.packing import can_pack
from specalign.models.properties import n_parameters
from specalign.provenance import stamp

CONTEXT = 200
CAPACITY = 512


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 3, 5, 9], help="tokens of a call")
    parser.add_argument("--compiled", type=int, nargs="*", default=[1, 5], help="those that are compiled too")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 on CUDA, else float32")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    facts = stamp(str(device)) | ceilings(device, dtype)
    calls, compile_s = prepare(args, device)
    seconds = alternate(calls, args.rounds)
    medians = {
        name: {str(n): statistics.median(times) for n, times in row.items()} for name, row in seconds.items()
    }
    result = {
        "provenance": facts,
        "model": args.model,
        "dtype": str(dtype),
        "context_tokens": CONTEXT,
        "rounds": args.rounds,
        "compile_s": compile_s,
        "median_s": medians,
        "seconds": {name: {str(n): times for n, times in row.items()} for name, row in seconds.items()},
    }
    write_json(args.output, result)
    print(json.dumps(medians, indent=1))


Calls = dict[str, dict[int, Callable[[], object]]]


@torch.inference_mode()
def prepare(args: argparse.Namespace, device: torch.device) -> tuple[Calls, dict[str, float]]:
    """Every call by runtime and number of tokens, and the seconds that each compiled size took."""
    model = load_model(args.model, dtype=resolve_dtype(args.dtype, device), device=device)
    print(f"{args.model}: {n_parameters(model):,} parameters", flush=True)
    compile_s: dict[str, float] = {}
    begun = [time.monotonic()]

    def note(_: int) -> None:
        compile_s[str(sorted(args.compiled)[len(compile_s)])] = time.monotonic() - begun[0]
        begun[0] = time.monotonic()

    steppers = {"eager": make_stepper(model)}
    if args.compiled:
        shapes = Shapes(tuple(args.compiled), CAPACITY)
        begun[0] = time.monotonic()
        steppers["compiled"] = make_stepper(model, "compiled", shapes=shapes, progress=note)
    if can_pack(model.get_output_embeddings().weight):
        steppers["packed"] = make_stepper(copy.deepcopy(model), "packed")
    prompt = [int(n) for n in torch.randint(100, 1000, (CONTEXT,), generator=torch.Generator().manual_seed(0))]
    calls: Calls = {}
    for name, stepper in steppers.items():
        session = Session.start(stepper, [prompt], 2 * max(args.tokens))
        tokens = args.compiled if name == "compiled" else args.tokens
        calls[name] = {n: call(session, prompt[:n], device) for n in tokens}
    return calls, compile_s


def call(session: Session, tokens: list[int], device: torch.device) -> Callable[[], object]:
    """Feed ``tokens`` after the prompt, and forget them again."""
    ids, before = torch.tensor([tokens], device=device), list(session.lengths)

    def run() -> None:
        session.extend(ids)
        session.rollback(before)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


@torch.inference_mode()
def alternate(calls: Calls, rounds: int) -> dict[str, dict[int, list[float]]]:
    """Seconds of every call, one of each in every round; the first two rounds warm up."""
    seconds: dict[str, dict[int, list[float]]] = {name: {n: [] for n in row} for name, row in calls.items()}
    for number in range(rounds + 2):
        for name, row in calls.items():
            for n, run in row.items():
                begun = time.perf_counter()
                run()
                if number >= 2:
                    seconds[name][n].append(time.perf_counter() - begun)
    return seconds


if __name__ == "__main__":
    main()
