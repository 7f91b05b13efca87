"""specalign from Python: what the commands do, over data and objectives at hand, and their results as objects.

``specalign.train`` and ``specalign.benchmark`` take what a recipe or a suite holds, and go the way of
``specalign-train`` and ``specalign-bench run``: the same checks, folders, rules for resuming and for overwriting.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from specalign.benchmarks.config import BenchConfig
from specalign.errors import UserError
from specalign.given import Rows, source_of
from specalign.options import with_options
from specalign.terminal import kept
from specalign.training.config import TrainConfig
from specalign.training.recipe import resolve
from specalign.training.runs import expanded, require_possible

if TYPE_CHECKING:
    from torch import Tensor

    from specalign.outcomes import BenchmarkResult, TrainedStudent

Options = Mapping[str, Any]
"""Options of a command by dotted names, ``{"optimiser.lr": 1e-4}``, or as tables, ``{"optimiser": {"lr": 1e-4}}``."""
Drafters = Mapping[str, "str | os.PathLike[str]"] | Iterable["TrainedStudent"]
"""Drafters: a folder or model name for each name, or trained students, called as their folders are."""


def train(
    config: TrainConfig | str | Path | Options | None = None,
    *,
    data: str | Path | Rows | None = None,
    objective: Callable[..., Tensor] | None = None,
    quiet: bool = True,
) -> TrainedStudent:
    """Train one drafter, or go on with it, as ``specalign-train`` does; returns it when it is complete.

    ``config``: a recipe's path, options (``recipe`` among them is such a path), or a :class:`TrainConfig`; None: all
    defaults. ``data``: what to train on in the place of ``data.source``: texts, rows with the columns of a data file,
    conversations, a data frame; cut into splits by their content, or a mapping with ``train`` and ``validation``.
    ``objective``: ``(student_logits [..., C], teacher_logits [..., C], *, labels=None, **hyper) -> [...]``, as in
    :data:`specalign.losses.LOSSES`; it is the objective ``plugin`` of the recipe. ``quiet``: print nothing; what would
    have been printed is in ``messages`` of what is returned.

    A complete run of the same recipe, data, models and objective is returned as it is. Raises UserError, one line, for
    a user's mistake, a folder that holds another run, and a recipe of several runs.
    """
    from specalign.outcomes import TrainedStudent
    from specalign.training.plugins import plugin_from
    from specalign.training.session import train_all

    plugin = plugin_from(objective) if objective else None
    label = plugin.label if plugin else ""
    source = None if data is None else source_of(data)
    options = _options(config, TrainConfig)
    recipe = str(options.get("recipe", ""))

    def read(name: str | None, swept: Options) -> TrainConfig:
        plugin = {"objective.plugin": label} if label else {}
        return _train_config(config, options, name, {**options, **plugin, **swept}, source)

    runs = require_possible(expanded(read, recipe))
    if len(runs) > 1:
        raise UserError(
            f"this recipe has {len(runs)} runs ({runs[0].output}, {runs[1].output}, ...): train them by the command, "
            "or one at a time"
        )
    with _still(), _said(quiet) as said:
        train_all(runs, {plugin.label: plugin} if plugin else {})
    return TrainedStudent(runs[0].output, tuple(said))


def benchmark(
    config: BenchConfig | str | Path | Options | None = None,
    *,
    prompts: str | Path | Rows | None = None,
    drafters: Drafters | None = None,
    quiet: bool = True,
) -> BenchmarkResult:
    """Decode with each drafter next to the plain target, or go on with it, as ``specalign-bench run`` does.

    ``config``: a suite's path, options (``suite`` among them is such a path), or a :class:`BenchConfig`; None: all
    defaults. ``prompts``: what to decode in the place of ``data.source``, as ``data`` of :func:`train`; all of them
    unless ``data.limit`` is among the options. ``drafters``: ``{"gkd": "runs/gkd"}``, or students that :func:`train`
    returned. ``quiet``: as there.

    A complete run of the same suite and checkpoints is returned as it is. Raises UserError for a user's mistake.
    """
    from specalign.benchmarks.engines import ENGINES
    from specalign.benchmarks.prepare import prepared, suite_config
    from specalign.outcomes import BenchmarkResult

    options = _options(config, BenchConfig)
    made = config if isinstance(config, BenchConfig) else suite_config(options.get("suite"))
    if prompts is not None:
        limit = options.get("data.limit", 0)
        made = replace(made, data=replace(made.data, source=source_of(prompts), split="all", limit=limit))
    if drafters is not None:
        made = replace(made, drafter=tuple(f"{name}={path}" for name, path in _named(drafters).items()))
    made = prepared(with_options(made, options, "benchmark()"))
    with _still(), _said(quiet) as said:
        ENGINES[made.engine.name](made)
    return BenchmarkResult(made.output, tuple(said))


def _train_config(
    config: object, options: Options, name: str | None, over: Options, source: str | None
) -> TrainConfig:
    """As the command reads its recipe and flags: ``name`` is a method or an arm, the preset follows ``over``."""
    if isinstance(config, TrainConfig):
        made = config
    else:
        recipe = options.get("recipe")
        base = resolve(TrainConfig(), Path(recipe) if recipe else None, name or options.get("method"), over)
        made = replace(with_options(base, options, "train()"), method=base.method)
    if plugin := over.get("objective.plugin"):
        made = replace(made, objective=replace(made.objective, plugin=plugin))
    return replace(made, data=replace(made.data, source=source)) if source else made


def _options(config: object, kind: type) -> dict[str, Any]:
    """Options by their dotted names; a file's path is the option that names it."""
    if isinstance(config, Mapping):
        return dict(_flat(kind, config))
    if isinstance(config, str | Path):
        return {"recipe" if kind is TrainConfig else "suite": Path(config)}
    if config is None or isinstance(config, kind):
        return {}
    raise UserError(f"a config is a path, options or a {kind.__name__}, not of type {type(config).__name__}")


def _flat(kind: Any, table: Options, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of tables in tables; what is a table itself, such as ``objective.weights``, stays one."""
    hints = get_type_hints(kind)
    for key, value in table.items():
        if isinstance(value, Mapping) and is_dataclass(hints.get(key)):
            yield from _flat(hints[key], value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _named(drafters: Drafters) -> dict[str, str]:
    if isinstance(drafters, Mapping):
        return {name: os.fspath(place) for name, place in drafters.items()}
    students = list(drafters)
    found = {student.path.name: str(student.path) for student in students}
    if len(found) < len(students):
        raise UserError("two drafters' folders have the same name: give a mapping from names to them")
    return found


def _said(quiet: bool) -> AbstractContextManager[list[str]]:
    """What is kept instead of being printed; nothing where it is printed."""
    return kept() if quiet else nullcontext([])


@contextmanager
def _still() -> Iterator[None]:
    """transformers' own bars and remarks are off meanwhile."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
