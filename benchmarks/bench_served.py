"""What vLLM accepts of a drafter, against our own engine: the same target, prompts and draft length, greedily.

    python benchmarks/bench_served.py --drafters head=HEAD slice=TRAINED:EXPORTED --python VLLMS_PYTHON --output FILE

Our engine reads what stands before the colon, vLLM what stands behind it (the same folder where there is none): what
`specalign-train export` made of it. SmolLM2-135M-Instruct in float32 and the built-in docstrings, all prompts at once
in both engines. Speed plays no part, so that the machine may be busy: acceptance is a count. Of a folder that was
exported FILE has the mass of its untrained rows besides: at the export's held-out states, and at those after these
prompts and the plain target's outputs, from which it drafts here. Drafters that FILE holds are not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specalign.analysis.deploy import HEAD, speculative_config
from specalign.benchmarks.cli import parse_run
from specalign.benchmarks.suite import load_prompts
from specalign.decoding import generate, make_stepper
from specalign.decoding.parallel import drafter_of, drafts_at_once
from specalign.decoding.records import Step
from specalign.files import write_json
from specalign.models.eagle import is_head, load_head
from specalign.models.load import load_model, load_tokenizer, resolve_model
from specalign.models.properties import eos_ids
from specalign.models.servable import is_blocked, response_states, verified
from specalign.models.vocabulary import load_draft_vocabulary
from specalign.provenance import stamp, weights_sha256
from specalign.serving import server
from specalign.serving.client import Request, complete, settled_counts

TARGET = "builtin:smollm2"
ARGUMENTS = "--enforce-eager --max-model-len 512 --no-enable-prefix-caching"
server.START_S = 3600.0  # a busy machine starts one late


def main() -> None:
    """Measure what FILE lacks, writing it after each drafter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafters", nargs="+", required=True, metavar="NAME=FOLDER[:SERVED]")
    parser.add_argument("--python", required=True, help="Python of an environment with vLLM")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--gamma", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    settings = {"prompts": args.prompts, "tokens": args.tokens, "gamma": args.gamma, "vllm": ARGUMENTS}
    found = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {"drafters": {}}
    target = load_model(TARGET)
    data = parse_run(["--suite", "benchmarks/study_long.toml", "--data.limit", str(args.prompts)])
    prompts = [list(prompt.input_ids) for prompt in load_prompts(data, load_tokenizer(TARGET))]
    plain = generate(target, None, prompts, temperature=0.0, max_new_tokens=args.tokens).token_ids
    for name, _, folders in (words.partition("=") for words in args.drafters):
        if name not in found["drafters"]:
            ours, _, served = folders.partition(":")
            row = measured(target, prompts, plain, (ours, served or ours), args)
            print(name, json.dumps(row), flush=True)
            found["drafters"][name] = row
            versions = {"vllm": server.require_vllm(args.python)}
            write_json(args.output, {"provenance": stamp("cpu") | versions, "settings": settings, **found})


def measured(
    target: Any, prompts: list[list[int]], plain: list[list[int]], folders: tuple[str, str], args: Any
) -> dict[str, Any]:
    """One drafter in both engines."""
    ours = own(target, prompts, plain, folders[0], args)
    counts, outputs = served(target, prompts, folders[1], args)
    row = {
        "weights_sha256": [weights_sha256(Path(folder)) for folder in folders],
        "alpha": [ours["alpha"], counts["alpha"]],
        "difference": counts["alpha"] - ours["alpha"],
        "own": ours,
        "vllm": counts,
        "outputs_equal": sum(one == other for one, other in zip(outputs, plain, strict=True)),
    }
    kept = load_draft_vocabulary(Path(folders[0]))
    if folders[0] == folders[1] or kept is None:
        return row
    exported = json.loads((Path(folders[1]) / "provenance.json").read_text(encoding="utf-8"))["exported"]
    model = load_model(folders[1])
    width = int(model.config.get_text_config().vocab_size)
    here = verified(
        model, is_blocked(width, width, kept), response_states(model, list(zip(prompts, plain, strict=True)))
    )
    full = own(target, prompts, plain, folders[0], args, full=True)
    return row | {
        "own_with_all_rows_as_trained": full,
        "untrained_rows": {"export": {key: exported[key] for key in asdict(here)}, "here": asdict(here)},
    }


def own(
    target: Any, prompts: list[list[int]], plain: list[list[int]], folder: str, args: Any, *, full: bool = False
) -> dict[str, Any]:
    """Our engine's counts as vLLM counts: drafts begin after the first token, and the last may reach beyond the end."""
    model: Any = load_head(folder) if is_head(folder) else load_model(folder)
    drafter = drafter_of(model, None if full else load_draft_vocabulary(Path(folder)))
    begun = [[*prompt, ids[0]] for prompt, ids in zip(prompts, plain, strict=True)]
    n_new = args.tokens + args.gamma
    options: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": n_new, "gamma": args.gamma, "eos": ()}
    found = generate(make_stepper(target), drafter, begun, **options)
    counted: list[Step] = []
    for ids, steps in zip(plain, found.steps, strict=True):
        n = 1
        for step in steps:
            counted += [step] if n < len(ids) else []
            n += step.n_emitted
    return rates(
        [sum(step.n_accepted > place for step in counted) for place in range(args.gamma)], len(counted)
    )


def served(
    target: Any, prompts: list[list[int]], folder: str, args: Any
) -> tuple[dict[str, Any], list[list[int]]]:
    """vLLM's counters, and its outputs."""
    head = is_head(folder)
    parallel = not head and drafts_at_once(drafter_of(load_model(folder))) > 1
    config = speculative_config(HEAD if head else "model", args.gamma, resolve_model(folder), parallel=parallel)
    words = server.model_arguments(resolve_model(TARGET), "target", "float32", trust_remote_code=False)
    words += [*ARGUMENTS.split(), "--speculative-config", json.dumps(config)]
    requests = [Request(ids, args.tokens, ends=eos_ids(target)) for ids in prompts]
    with (
        tempfile.NamedTemporaryFile(suffix=".log") as log,
        server.serving(args.python, words, Path(log.name)) as running,
        ThreadPoolExecutor(len(requests)) as pool,
    ):
        answers = list(pool.map(lambda request: complete(running, request), requests))
        counts = settled_counts(running)
    assert counts is not None, "the server drafts"
    return rates(counts.accepted_by_position, counts.n_drafts), [answer.token_ids for answer in answers]


def rates(accepted: Sequence[int], n_drafts: int) -> dict[str, Any]:
    """alpha: accepted over judged positions; ``accepted`` counts drafts whose first i tokens were, i = 1..gamma."""
    judged = [n_drafts, *accepted[:-1]]
    return {
        "alpha": sum(accepted) / sum(judged),
        "by_position": [one / of if of else None for one, of in zip(accepted, judged, strict=True)],
        "n_drafts": n_drafts,
    }


if __name__ == "__main__":
    main()
