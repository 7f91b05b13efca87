"""From what a command or a call asks for to its runs: methods or arms, each swept, each with every seed; checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from specalign.curves import COMPARISON
from specalign.errors import UserError
from specalign.folders import is_empty, removable, require_usable
from specalign.names import require_data_name, require_model_name
from specalign.options import with_options
from specalign.training.config import TrainConfig
from specalign.training.recipe import check, completed, with_prompt
from specalign.training.sweep import arms_of

SHARED = ("teacher", "data", "device", "attn", "engine", "rollout.teacher_temperature")
"""What is loaded, or written by the teacher, once for all runs of a command."""
Read = Callable[[str | None, Mapping[str, Any]], TrainConfig]
"""(Name of a method or arm, or None; the options that are swept) -> the config that is asked for, with what these
decide of its preset."""


def expanded(read: Read, recipe: str = "") -> list[TrainConfig]:
    """One resolved and checked config for each method or arm that is asked for, each value that is swept, each seed."""
    first = read(None, {})
    names = first.compare or tuple(first.arms)
    named: dict[Path, str | None] = {first.output / name: name for name in names}
    swept = {
        output / arm if arm else output: with_options(read(name, options), options, "--sweep")
        for output, name in (named or {first.output: None}).items()
        for arm, options in arms_of(read(name, {}).sweep).items()
    }
    found = [
        completed(replace(config, output=output / f"seed-{seed}" if first.seeds else output, seed=seed))
        for output, config in swept.items()
        for seed in first.seeds or (config.seed,)
    ]
    if COMPARISON in names:
        raise UserError(f"an arm cannot be called {COMPARISON!r}: that folder has what tells the arms apart")
    for config in found:
        check(config)
        if config.overwrite:
            removable(config.output, {"--recipe": recipe})
        _require_shared(found[0], config)
    return [
        replace(with_prompt(config), recipe=None, compare=(), arms={}, seeds=(), sweep=()) for config in found
    ]


def require_possible(found: list[TrainConfig]) -> list[TrainConfig]:
    """Raises UserError, before torch is imported, for an output that cannot be one, or inputs that are not there.

    A run that is there already may have lost its inputs: what it can do without them is its own to say.
    """
    for config in found:
        require_usable(config.output)
        if is_empty(config.output):
            for name in (config.teacher.model, config.student.model, config.objective.reference):
                if name:
                    require_model_name(name)
            require_data_name(config.data.source)
    return found


def root_of(runs: Sequence[Path]) -> Path:
    """The folder that several runs of a command lie in."""
    parents = [set(run.parents) for run in runs]
    return max(set.intersection(*parents), key=lambda folder: len(folder.parts))


def _require_shared(first: TrainConfig, config: TrainConfig) -> None:
    """Raise UserError where a run differs in what all runs of a command take from the first one."""
    for name in SHARED:
        if attrgetter(name)(config) != attrgetter(name)(first):
            raise UserError(
                f"{config.output} differs from {first.output} in {name}, which the runs of one command share; "
                "give it a command of its own"
            )
