"""What training does to a drafter in its first steps: alpha and agreement after 0, 1, 2, 5, 10, 20, 50 and 100 of them.

    python benchmarks/bench_learning.py --output FILE [--curves START:METHOD:LR ...]   (hours on 2 CPU cores; resumable)

Every method from every kind of start, at several peak rates: SmolLM2-135M-Instruct as teacher, drafters of four
layers, the built-in docstrings, otherwise the defaults (batches of 4 prompts). What FILE holds already is not
measured again. Speed plays no part, so that the machine may be busy. One seed; `alpha_se` is the spread between the
validation prompts, which all points share.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from specalign.config import cache_dir
from specalign.files import write_json
from specalign.provenance import stamp
from specalign.training.config import OptimiserConfig, TrainConfig
from specalign.training.loop import step
from specalign.training.materials import Materials, load_materials
from specalign.training.recipe import completed, overlay, with_prompt
from specalign.training.session import train_all
from specalign.training.setup import start_run

POINTS = (0, 1, 2, 5, 10, 20, 50, 100)
"""Steps after which the drafter is validated."""
SHARED: dict[str, Any] = {
    "student": {"n_layers": 4, "align_tokens": 16_000},
    "data": {"max_prompt_tokens": 64, "max_response_tokens": 24, "n_train": 320, "n_validation": 48},
    "teacher": {"reuse_states": True, "reuse_on_disk": True},
    "budget": {"steps": POINTS[-1]},
    "logging": {"every": 50, "validate_every": 0, "checkpoint_every": 100},
}
STARTS: dict[str, dict[str, Any]] = {
    "aligned": {"start": "aligned"},
    "trimmed": {"start": "aligned", "draft_vocabulary": 4096},
    "trained": {},
    "broken": {"start": "slice"},
}
"""Name -> what student.* says; "trained" is made first."""
METHODS = ("sft", "seqkd", "distillspec", "gkd", "contrastive")
RATES = ("1e-3", "3e-4", "1e-4")
CURVES = [f"{start}:{method}:{lr}" for method in METHODS for start in STARTS for lr in RATES]


def main() -> None:
    """Measure what FILE lacks, writing it after each curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--curves", nargs="*", default=CURVES, metavar="START:METHOD:LR", help="only these")
    parser.add_argument("--warmup-steps", type=int, default=OptimiserConfig().warmup_steps)
    args = parser.parse_args()
    found = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {"curves": []}
    done = {(curve["start"], curve["method"], curve["lr"], curve["warmup_steps"]) for curve in found["curves"]}
    materials = load_materials(config_of("aligned", "seqkd", {}))
    for name in args.curves:
        start, method, lr = name.split(":")
        rate = {"lr": float(lr), "warmup_steps": args.warmup_steps}
        if (start, method, *rate.values()) not in done:
            points = curve(materials, config_of(start, method, rate), name)
            found["curves"].append({"start": start, "method": method, **rate, "points": points})
            write_json(args.output, {"provenance": stamp("cpu"), **found, "settings": SHARED})


def config_of(start: str, method: str, rate: dict[str, Any]) -> TrainConfig:
    """The defaults, but for SHARED, the start and the rate."""
    config = overlay(replace(TrainConfig(), method=method), SHARED, None)  # type: ignore[arg-type]
    config = overlay(config, {"student": STARTS[start], "optimiser": rate}, None)
    if start == "trained":
        config = overlay(config, {"student": {"model": str(trained())}}, None)
    return with_prompt(completed(config))


def trained() -> Path:
    """A drafter that is trained already: 150 steps of forward KL on the teacher's responses."""
    folder = cache_dir() / "bench_learning"
    config = config_of("aligned", "distillspec", {"lr": 5e-4})
    changes = {"output": folder, "rollout": {"source": "teacher"}, "budget": {"steps": 150}}
    train_all([overlay(config, changes, None)])
    return folder


def curve(materials: Materials, config: TrainConfig, name: str) -> list[dict[str, Any]]:
    """One run without files: its validations at POINTS."""
    run = start_run(config, materials)
    points = []
    for n in range(POINTS[-1] + 1):
        if n:
            step(run)
        if n in POINTS:
            points.append({"step": n, **asdict(run.validation.score(run.pair))})
            print(name, points[-1], flush=True)
    return points


if __name__ == "__main__":
    main()
