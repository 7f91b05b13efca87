"""specalign-train: train drafters. Imports nothing heavy before it knows that there is work to do."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from specalign.config import flag_value, gathered, parse_flags
from specalign.errors import UserError, run_cli, unknown
from specalign.terminal import say
from specalign.training.config import Source, TrainConfig
from specalign.training.recipe import DECIDING, resolve
from specalign.training.runs import expanded, require_possible
from specalign.training.student_config import Kind

PROGRAM = "specalign-train"
DESCRIPTION = """Train a drafter for speculative decoding, and keep it as a plain Hugging Face checkpoint.

  specalign-train --method gkd                          the built-in teacher and data, no network needed
  specalign-train --recipe training/gkd.toml --output runs/gkd --optimiser.lr 1e-4
  specalign-train --compare untrained aligned sft gkd --output runs/compare
  specalign-train --sweep optimiser.lr=1e-4,3e-4 objective.hyper.temperature=1,2 --output runs/sweep
  specalign-train plot RUN ...                          draw the curves of train.jsonl
  specalign-train check --recipe training/gkd.toml      models, data and memory, without loading a weight
  specalign-train plan --recipe training/gkd.toml       parameters, memory and arithmetic, without training;
                                                        --memory-gib 24 --tflops 60 describe another machine
  specalign-train export RUN --output DIR               as engines serve it: the target's rows, none untrained wins

An interrupted run goes on from its last checkpoint when the same command is given again."""


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    words = list(arguments)
    if words and words[0] in COMMANDS:
        COMMANDS[words[0]](words[1:])
        return
    found = require_possible(configs(words))
    from specalign.training.session import train_all

    train_all(found)
    if len(found) > 1 and int(os.environ.get("RANK", "0")) == 0:
        from specalign.training.ranking import compare_runs

        compare_runs(found)


def configs(words: Sequence[str]) -> list[TrainConfig]:
    """The runs that a command line asks for (:func:`runs.expanded`)."""
    words = gathered(words, "--sweep")
    return expanded(partial(read_config, words), flag_value(words, "--recipe") or "")


def _deciding(words: Sequence[str]) -> dict[str, str]:
    """What the flags say that decides what a method means; a kind or source that there is not is refused later."""
    found = {name: flag_value(words, f"--{name}") or "" for name in DECIDING}
    choices = {"student.kind": get_args(Kind), "rollout.source": get_args(Source)}
    return {name: value if value in choices.get(name, (value,)) else "" for name, value in found.items()}


def read_config(words: Sequence[str], name: str | None, swept: Mapping[str, Any]) -> TrainConfig:
    """Flags over arm over recipe over preset over defaults; ``name`` (a method or arm) goes before --method.

    Of the options ``swept``, which go before all of these, only those are read that the preset depends on.
    """
    recipe, flag_method = flag_value(words, "--recipe"), flag_value(words, "--method")
    over = {**_deciding(words), **swept}
    base = resolve(TrainConfig(), Path(recipe) if recipe else None, name or flag_method, over)
    config = parse_flags(TrainConfig, words, default=base, program=PROGRAM, description=DESCRIPTION)
    return replace(config, method=base.method) if name else config


def plot(words: Sequence[str]) -> None:
    """Draw the curves of one or more runs."""
    if not words or words[0].startswith("-"):
        say("usage: specalign-train plot RUN [RUN ...]   writes train.png into the first RUN")
        if words and words[0] not in ("-h", "--help"):
            raise unknown("argument", words[0], ("RUN", "--help"))
        return
    from specalign.training.plot import plot_runs

    say(plot_runs([Path(word) for word in words]))


def plan(words: Sequence[str]) -> None:
    """Print parameters, memory and arithmetic of a recipe, for this machine or for one that is described."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--memory-gib", type=float)
    parser.add_argument("--tflops", type=float)
    parser.add_argument("--processes", type=int)
    try:
        known, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    for name, value in vars(known).items():
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be positive, not {value:g}")
    if {"-h", "--help"} & set(rest):
        say("usage: specalign-train plan [--memory-gib GIB] [--tflops RATE] [--processes N] [flags of a run]\n")
        say("GIB: memory of the GPU in mind, else this machine's device's. RATE: TFLOP/s that it reaches.")
        say("N: processes that divide what optimiser.sharded says.")
        return
    from specalign.training.plan import print_plan

    for config in configs(rest):
        print_plan(config, memory_gib=known.memory_gib, tflops=known.tflops, processes=known.processes)


def check_first(words: Sequence[str]) -> None:
    """Check what a run would need, without loading a weight."""
    found = require_possible(configs(words))
    from transformers.utils.logging import set_verbosity_error

    from specalign.preflight import report
    from specalign.training.preflight import findings

    set_verbosity_error()
    report(f"{PROGRAM}: before training", findings(found, data=True))


def export(words: Sequence[str]) -> None:
    """Write a drafter as serving engines draft with it."""
    from specalign.training.export import main as export_main

    export_main(words)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "plot": plot,
    "plan": plan,
    "check": check_first,
    "export": export,
}


def entry() -> None:
    """Console script."""
    code = run_cli(PROGRAM, lambda: main(sys.argv[1:]))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """End a launcher's process without native clean-up: gloo's threads now and then abort in it after all work is done
    ("terminate called without an active exception"), and the launcher then ends the other processes."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
