"""What vLLM accepts of a drafter, against our own engine: the same target, prompts and draft length.

    python benchmarks/bench_served.py --drafters head=HEAD slice=TRAINED:EXPORTED --python VLLMS_PYTHON --output FILE
    (the same with) --temperature 1 --repeats 6

Our engine reads what stands before the colon, vLLM what stands behind it (the same folder where there is none): what
`specalign-train export` made of it. SmolLM2-135M-Instruct in float32 and the built-in docstrings, all prompts at once
in both engines. Speed plays no part, so that the machine may be busy: acceptance is a count. Greedily the counts of
both engines can be equal; where tokens are sampled, every repeat answers all prompts anew, and the repeats give each
rate, and the engines' difference, a 95 % interval for these prompts. Of a folder that was exported FILE has the mass
of its untrained rows besides: at the export's held-out states, and at those after these prompts and the plain target's
outputs, from which it drafts here. Drafters that FILE holds are not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from specalign.analysis.deploy import HEAD, speculative_config
from specalign.benchmarks.cli import parse_run
from specalign.benchmarks.suite import load_prompts
from specalign.decoding import generate, make_stepper
from specalign.decoding.parallel import drafter_of, drafts_at_once
from specalign.decoding.records import Generation, Step
from specalign.files import write_json
from specalign.models.eagle import is_head, load_head
from specalign.models.load import load_model, load_tokenizer, resolve_model
from specalign.models.properties import eos_ids
from specalign.models.servable import is_blocked, response_states, verified
from specalign.models.vocabulary import load_draft_vocabulary
from specalign.provenance import stamp, weights_sha256
from specalign.serving import server
from specalign.serving.client import Request, complete, difference, settled_counts

TARGET = "builtin:smollm2"
ARGUMENTS = "--enforce-eager --max-model-len 512 --no-enable-prefix-caching"


@dataclass(frozen=True)
class Counted:
    """What one repeat of all prompts counted."""

    n_drafts: int
    accepted: list[int]
    """Drafts whose first i tokens were accepted, i = 1..gamma."""

    @property
    def alpha(self) -> float:
        """Accepted over judged positions: one is judged where all before it were accepted."""
        return sum(self.accepted) / sum([self.n_drafts, *self.accepted[:-1]])


def main() -> None:
    """Measure what FILE lacks, writing it after each drafter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafters", nargs="+", required=True, metavar="NAME=FOLDER[:SERVED]")
    parser.add_argument("--python", required=True, help="Python of an environment with vLLM")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--gamma", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=1, help="of all prompts, where tokens are sampled")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    asked = {name: vars(args)[name] for name in ("prompts", "tokens", "gamma", "temperature", "repeats")}
    settings = {**asked, "vllm": ARGUMENTS}
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
    ours = own(target, prompts, folders[0], args)
    theirs, outputs = served(target, prompts, folders[1], args)
    row = {
        "weights_sha256": [weights_sha256(Path(folder)) for folder in folders],
        "alpha": [rates(ours)["alpha"], rates(theirs)["alpha"]],
        "difference": rates(theirs)["alpha"] - rates(ours)["alpha"],
        "own": rates(ours),
        "vllm": rates(theirs),
    }
    if args.temperature:
        return row | {"difference_95": difference_95(ours, theirs)}
    row["outputs_equal"] = sum(one == other for one, other in zip(outputs, plain, strict=True))
    kept = load_draft_vocabulary(Path(folders[0]))
    if folders[0] == folders[1] or kept is None:
        return row
    exported = json.loads((Path(folders[1]) / "provenance.json").read_text(encoding="utf-8"))["exported"]
    model = load_model(folders[1])
    width = int(model.config.get_text_config().vocab_size)
    here = verified(
        model, is_blocked(width, width, kept), response_states(model, list(zip(prompts, plain, strict=True)))
    )
    full = own(target, prompts, folders[0], args, full=True)
    return row | {
        "own_with_all_rows_as_trained": rates(full),
        "untrained_rows": {"export": {key: exported[key] for key in asdict(here)}, "here": asdict(here)},
    }


def own(target: Any, prompts: list[list[int]], folder: str, args: Any, *, full: bool = False) -> list[Counted]:
    """Our engine's counts as vLLM counts: drafts begin after the first token, and the last may reach beyond the end."""
    model: Any = load_head(folder) if is_head(folder) else load_model(folder)
    drafter = drafter_of(model, None if full else load_draft_vocabulary(Path(folder)))
    ends, counted = set(eos_ids(target)), []
    for repeat in range(args.repeats):
        generator = torch.Generator().manual_seed(repeat)
        options: dict[str, Any] = {"temperature": args.temperature, "eos": (), "generator": generator}
        first = generate(target, None, prompts, max_new_tokens=1, **options).token_ids
        begun = [[*prompt, *ids] for prompt, ids in zip(prompts, first, strict=True)]
        n_new = args.tokens + args.gamma
        found = generate(
            make_stepper(target), drafter, begun, gamma=args.gamma, max_new_tokens=n_new, **options
        )
        counted.append(drafts_in_time(first, found, ends, args))
    return counted


def drafts_in_time(first: list[list[int]], found: Generation, ends: set[int], args: Any) -> Counted:
    """Of the steps that begin before the answer ends: at a token of ``ends``, or at its longest length."""
    steps: list[Step] = []
    for one, rest, row in zip(first, found.token_ids, found.steps, strict=True):
        text, n = [*one, *rest][: args.tokens], 1
        length = next((place + 1 for place, token in enumerate(text) if token in ends), args.tokens)
        for step in row:
            steps += [step] if n < length else []
            n += step.n_emitted
    return Counted(len(steps), [sum(step.n_accepted > place for step in steps) for place in range(args.gamma)])


def served(
    target: Any, prompts: list[list[int]], folder: str, args: Any
) -> tuple[list[Counted], list[list[int]]]:
    """vLLM's counters, repeat by repeat, and its last outputs."""
    head = is_head(folder)
    parallel = not head and drafts_at_once(drafter_of(load_model(folder))) > 1
    config = speculative_config(HEAD if head else "model", args.gamma, resolve_model(folder), parallel=parallel)
    words = server.model_arguments(resolve_model(TARGET), "target", "float32", trust_remote_code=False)
    words += [*ARGUMENTS.split(), "--speculative-config", json.dumps(config)]
    counted: list[Counted] = []
    with (
        tempfile.NamedTemporaryFile(suffix=".log") as log,
        server.serving(args.python, words, Path(log.name)) as running,
        ThreadPoolExecutor(len(prompts)) as pool,
    ):
        for repeat in range(args.repeats):
            before = settled_counts(running)
            requests = [
                Request(ids, args.tokens, args.temperature, seed=1000 * repeat + place, ends=eos_ids(target))
                for place, ids in enumerate(prompts)
            ]
            answers = list(pool.map(lambda request: complete(running, request), requests))
            after = settled_counts(running)
            assert before, "the server drafts"
            assert after, "the server drafts"
            counts = difference(after, before)
            counted.append(Counted(counts.n_drafts, counts.accepted_by_position))
    return counted, [answer.token_ids for answer in answers]


def rates(repeats: Sequence[Counted]) -> dict[str, Any]:
    """Of all repeats together: alpha is accepted over judged positions."""
    n_drafts = sum(each.n_drafts for each in repeats)
    accepted = [sum(places) for places in zip(*(each.accepted for each in repeats), strict=True)]
    row = {
        "alpha": Counted(n_drafts, accepted).alpha,
        "by_position": [
            one / of if of else None for one, of in zip(accepted, [n_drafts, *accepted[:-1]], strict=True)
        ],
        "n_drafts": n_drafts,
    }
    return row | ({"alpha_by_repeat": [each.alpha for each in repeats]} if len(repeats) > 1 else {})


def difference_95(ours: Sequence[Counted], theirs: Sequence[Counted]) -> list[float]:
    """Of vLLM's alpha minus ours: Welch's interval over the repeats."""
    one, other = ([each.alpha for each in repeats] for repeats in (theirs, ours))
    interval = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    return [float(interval.low), float(interval.high)]


if __name__ == "__main__":
    main()
