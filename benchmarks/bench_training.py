"""On-policy training steps against TRL's GKDTrainer: trained tokens per second, peak memory, bookkeeping, the planner.

    python benchmarks/bench_training.py --output FILE [--qwen]      (about 10 minutes on 2 CPU cores, --qwen 3 more)

Same teacher, student (a slice of four layers with the whole vocabulary), prompts, batch, sampling temperature,
lengths and divergence (JSD, beta 0.5), all in float32: each step samples whole responses from the student, scores
them with the teacher and updates the student. Each side runs in a process of its own, in turns; the first step of a
process warms it up and is left out. trl is an optional extra (``peers``); without it our own side is measured alone.
Peak memory is the high-water mark of the resident set while steps run (Linux only), of the allocated tensors with
``--device cuda``, where only our own side is measured, in the precision that a recipe has there; loading is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bars import ceilings, judged, peak_bytes, resident_bytes, restart_peak
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, Qwen2Config

from specalign.data import Prompt, encode_prompts, load_examples
from specalign.decoding.clock import Clock
from specalign.files import write_json
from specalign.models.load import load_model, load_tokenizer, resolve_device, resolve_dtype
from specalign.models.slicing import choose_layers, slice_layers
from specalign.provenance import BusyMeter, stamp
from specalign.templates import prompt_text
from specalign.training import journal, loop, optimiser, scoring, setup
from specalign.training.config import (
    BudgetConfig,
    DataConfig,
    LoggingConfig,
    ObjectiveConfig,
    OptimiserConfig,
    RolloutConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from specalign.training.materials import load_materials
from specalign.training.plan import make_plan
from specalign.training.rollouts import Policy, Writer

N_LAYERS = 4
BARS = {
    "trained response tokens per second over TRL's, at least": 2.0,
    "peak memory over TRL's, at most": 0.5,
    "share of a step outside generation, forward, backward and optimiser, at most": 0.03,
}
QWEN_STUDENT: dict[str, Any] = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
QWEN_TEACHER: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
QWEN_IDS = 151_665
"""Ids of Qwen2.5's tokenizer; its models have 151,936 rows."""


def main() -> int:
    """Measure, write, and hold the figures against the bars; exit code 1 where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=5, help="steps of a process, the first left out")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--teacher", default="builtin:smollm2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--qwen", action="store_true", help="a step of Qwen2.5's sizes too, random weights, 16 GB"
    )
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
        return 0
    if not args.output:
        parser.error("--output names the file to write")
    return compare(args)


def compare(args: argparse.Namespace) -> int:
    """Both sides in turns."""
    device = resolve_device(args.device)
    provenance = stamp(str(device)) | ceilings(device, resolve_dtype("auto", device))
    load = BusyMeter()
    sides = ["specalign"] + (["trl"] if _version("trl") and device.type == "cpu" else [])
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        args.models = Path(folder)
        make_models(args.models, args.teacher)
        for _ in range(args.rounds):
            for side in sides:
                runs[side].append(in_process(side, args))
        qwen = in_process("qwen", args) if args.qwen else None
    summary = {side: summarised(measured) for side, measured in runs.items()}
    verdicts = verdicts_on(summary)
    settings = {name: getattr(args, name) for name in ("batch", "new_tokens", "prompt_tokens", "temperature")}
    settings |= {"steps": args.steps, "rounds": args.rounds, "layers": N_LAYERS, "trl": _version("trl")}
    found = {"provenance": provenance, "busy_during": load.others(), **settings, "verdicts": verdicts}
    write_json(args.output, found | {"summary": summary, "qwen": qwen, "runs": runs})
    print(json.dumps({"verdicts": verdicts, "summary": summary, "qwen": qwen}, indent=1))
    return int(not all(verdict["met"] for verdict in verdicts))


def make_models(folder: Path, name: str) -> None:
    """Teacher and student as plain checkpoints that both sides load."""
    teacher = load_model(name, dtype=torch.float32)
    student = slice_layers(teacher, choose_layers(teacher.config.num_hidden_layers, N_LAYERS))
    tokenizer = load_tokenizer(name)
    for name, model in (("teacher", teacher), ("student", student)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def in_process(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """One side, measured in a fresh process."""
    command = [sys.executable, __file__, "--side", side, "--models", str(args.models)]
    for name in ("batch", "new_tokens", "prompt_tokens", "temperature", "steps", "device"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Steps:
    """Seconds and trained tokens of each step, and the peak of memory from the second step on."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.clock = device, Clock(device)
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.resident_bytes = 0
        self._begun = 0.0

    def begin(self) -> None:
        if len(self.seconds) == 1:
            self.resident_bytes = resident_bytes(self.device)
            restart_peak(self.device)
        self._begun = self.clock.settle()

    def end(self, n_tokens: int) -> None:
        self.seconds.append(self.clock.settle() - self._begun)
        self.tokens.append(n_tokens)

    def found(self) -> dict[str, Any]:
        return {
            "step_s": self.seconds[1:],
            "tokens": self.tokens[1:],
            "peak_bytes": peak_bytes(self.device),
            "resident_before_bytes": self.resident_bytes,
        }


def specalign_side(args: argparse.Namespace) -> dict[str, Any]:
    """`specalign-train`'s own loop, with a clock around each step."""
    device = resolve_device(args.device)
    steps = Steps(device)
    spent: dict[str, float] = defaultdict(float)
    config = recipe(args, args.models / "run")
    plain = loop.step

    def clocked(run: setup.Run) -> journal.StepReport:
        if len(steps.seconds) == 1:
            spent.clear()
        steps.begin()
        report = plain(run)
        steps.end(report.n_tokens)
        return report

    with patch.object(loop, "step", clocked), work_seconds(spent):
        materials = load_materials(config)
        with patch.object(loop, "validate", lambda run, begun: None):
            loop.train(config, materials)
    found = steps.found()
    if device.type == "cpu":  # elsewhere calls end before their work
        found["outside_work"] = 1 - sum(spent.values()) / sum(found["step_s"])
    return found | {"work_s": dict(spent), "planned_bytes": make_plan(config).total}


def recipe(args: argparse.Namespace, output: Path) -> TrainConfig:
    """What a user would write for this comparison."""
    return TrainConfig(
        method="distillspec",
        output=output,
        overwrite=True,
        device=args.device,
        teacher=TeacherConfig(model=str(args.models / "teacher")),
        student=StudentConfig(model=str(args.models / "student")),
        data=DataConfig(
            prompt=prompt_text("", "builtin:docstrings"),
            max_prompt_tokens=args.prompt_tokens,
            max_response_tokens=args.new_tokens,
            n_train=args.batch * args.steps,
            n_validation=1,
        ),
        rollout=RolloutConfig(source="student", style="full", temperature=args.temperature),
        objective=ObjectiveConfig(weights={"jsd": 1.0}, hyper={"beta": 0.5}),
        optimiser=OptimiserConfig(lr=1e-4, batch=args.batch),
        budget=BudgetConfig(steps=args.steps),
        logging=LoggingConfig(validate_every=0, checkpoint_every=0),
    )


@contextmanager
def work_seconds(spent: dict[str, float]) -> Iterator[None]:
    """Adds up what a step has to do whoever organises it; calls inside one another count once."""
    depth = 0

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            begun, depth = time.perf_counter(), depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                if depth == 0:
                    spent[name] += time.perf_counter() - begun

        return call

    places: list[tuple[Any, str, str]] = [
        (Writer, "_write", "generate"),
        (loop, "observed", "forward"),
        (scoring, "states", "forward"),
        (scoring, "chunked_loss", "forward"),
        (torch.Tensor, "backward", "backward"),
        (loop, "clip_gradients", "optimiser"),
        (torch.optim.AdamW, "step", "optimiser"),
    ]
    patches = [patch.object(owner, name, clocked(kind, getattr(owner, name))) for owner, name, kind in places]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def trl_side(args: argparse.Namespace) -> dict[str, Any]:
    """TRL's trainer on the same token ids, its gradient checkpointing off (it would generate without a cache)."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    steps, counted = Steps(torch.device("cpu")), 0

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.end(counted)

    class Counting(GKDTrainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            nonlocal counted
            counted = int((inputs["labels"] != -100).sum())
            return super().compute_loss(model, inputs, *rest, **named)

    tokenizer = load_tokenizer(str(args.models / "teacher"))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = [{"ids": list(prompt.input_ids)} for prompt in encoded(args, tokenizer)]
    trainer = Counting(
        model=AutoModelForCausalLM.from_pretrained(args.models / "student", dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(args.models / "teacher", dtype=torch.float32),
        args=GKDConfig(
            output_dir=str(args.models / "trl"),
            per_device_train_batch_size=args.batch,
            max_steps=args.steps,
            learning_rate=1e-4,
            lmbda=1.0,
            beta=0.5,
            temperature=args.temperature,
            max_new_tokens=args.new_tokens,
            max_length=args.prompt_tokens + args.new_tokens,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(prompts),
        data_collator=lambda rows: left_padded([row["ids"] for row in rows], tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    return steps.found()


def encoded(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts that specalign-train makes of the recipe."""
    data = recipe(args, Path()).data
    return encode_prompts(
        load_examples(data.source, "train", limit=data.n_train),
        tokenizer,
        prompt=data.prompt,
        max_prompt_tokens=data.max_prompt_tokens,
    )


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """What GKDTrainer's own collator makes of prompts without a response."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return {
        "prompts": ids,
        "prompt_attention_mask": mask,
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.where(mask.bool(), ids, -100),
    }


def qwen_side(args: argparse.Namespace) -> dict[str, Any]:
    """Two steps of Qwen2.5-0.5B under Qwen2.5-1.5B (random weights, 151,936 rows) against the planner's bytes."""
    folder, batch, n_prompt, n_new = args.models / "qwen", 2, args.prompt_tokens, args.new_tokens
    models = {}
    for name, sizes in (("teacher", QWEN_TEACHER), ("student", QWEN_STUDENT)):
        shape = Qwen2Config(vocab_size=151_936, tie_word_embeddings=True, **sizes)
        shape.save_pretrained(folder / name)
        models[name] = AutoModelForCausalLM.from_config(shape)
        models[name].generation_config.eos_token_id = None
    device = resolve_device(args.device)
    torch.nn.Module.to(models["student"], device)
    teacher = models["teacher"].eval().requires_grad_(False)
    torch.nn.Module.to(teacher, device, resolve_dtype("auto", device))
    config = recipe(args, folder / "run")
    config = replace(
        config,
        teacher=TeacherConfig(model=str(folder / "teacher")),
        student=StudentConfig(model=str(folder / "student")),
        optimiser=replace(config.optimiser, batch=batch),
    )
    ids = torch.randint(QWEN_IDS, (batch, n_prompt), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [Prompt(str(index), tuple(row), ()) for index, row in enumerate(ids)]
    run = setup.Run(
        config,
        config.output,
        scoring.Pair(models["student"], teacher, QWEN_IDS),
        Policy(config.rollout, n_new, {}, {}),
        prompts,
        setup.build_objective(config.objective),
        optimiser.adamw(models["student"], config.optimiser),
        torch.Generator().manual_seed(0),
        validation=None,  # type: ignore[arg-type]  # not looked at by a step
        packed=True,
    )
    steps = Steps(device)
    for _ in range(3):
        steps.begin()
        steps.end(loop.step(run).n_tokens)
    return steps.found() | {"batch": batch, "planned_bytes": make_plan(config).total}


def summarised(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians over the processes of one side."""
    seconds = [second for run in runs for second in run["step_s"]]
    tokens = sum(sum(run["tokens"]) for run in runs)
    found = {
        "tokens_per_s": tokens / sum(seconds),
        "tokens_per_step": tokens / len(seconds),
        "median_step_s": statistics.median(seconds),
        "peak_bytes": statistics.median(run["peak_bytes"] for run in runs),
    }
    for name in ("outside_work", "planned_bytes"):
        if name in runs[0]:
            found[name] = statistics.median(run[name] for run in runs)
    return found


def verdicts_on(summary: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Each bar whose figure was measured."""
    ours, theirs = summary["specalign"], summary.get("trl")
    found = [
        ours["tokens_per_s"] / theirs["tokens_per_s"] if theirs else None,
        ours["peak_bytes"] / theirs["peak_bytes"] if theirs else None,
        ours.get("outside_work"),
    ]
    return judged(BARS, found)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


SIDES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "specalign": specalign_side,
    "trl": trl_side,
    "qwen": qwen_side,
}


if __name__ == "__main__":
    sys.exit(main())
