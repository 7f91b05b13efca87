"""From what is said to what is meant: a recipe's keys and arms, what a method decides, the rate; what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from specalign.config import checked, from_table, read_table
from specalign.errors import UserError, unknown
from specalign.options import overlay, with_options
from specalign.templates import prompt_text
from specalign.training.config import (
    PLUGIN,
    UNTRAINED,
    BudgetConfig,
    EngineConfig,
    ObjectiveConfig,
    OptimiserConfig,
    TrainConfig,
)
from specalign.training.student_config import StudentConfig

C = TypeVar("C")
Start = Literal["aligned slice", "bare slice", "trained model", "new head"]

RATES: dict[Start, float] = {
    "aligned slice": 1e-4,
    "bare slice": 1e-3,
    "trained model": 5e-5,
    "new head": 1e-3,
}
"""Peak learning rate by what training starts from: training/README.md has the learning curves."""

PRESETS: dict[str, dict[str, Any]] = {
    "untrained": {"student": {"start": "slice"}},
    "aligned": {"student": {"start": "aligned"}},
    "sft": {"rollout": {"source": "ground_truth"}, "objective": {"weights": {"cross_entropy": 1.0}}},
    "seqkd": {"rollout": {"source": "teacher"}, "objective": {"weights": {"cross_entropy": 1.0}}},
    "gkd": {"rollout": {"source": "student", "style": "branches"}},
    "distillspec": {"rollout": {"source": "mixed", "style": "full"}},
    "contrastive": {
        "rollout": {"source": "mixed", "style": "branches"},
        "objective": {"weights": {"rank_order": 1.0}},
    },
}
"""What a method says of the fields that the config leaves open (none, or empty), as tables of them.

gkd: Agarwal et al. 2023 (arXiv:2306.13649); distillspec: Zhou et al. 2023 (arXiv:2310.08461), which finds the
best divergence to depend on task and decoding; seqkd: Kim & Rush 2016 (arXiv:1606.07947).
"""

DECIDING = ("student.kind", "rollout.source", "objective.plugin")
"""Options that change what a method says: it follows the values that hold in the end."""

OTHERWISE: dict[str, Any] = {
    "student": {"start": "aligned"},
    "rollout": {"source": "student", "style": "branches"},
    "objective": {"weights": {"forward_kl": 1.0}},
}
"""What stays open after that."""

OBJECTIVES = {
    "cross_entropy": "",
    "forward_kl": "temperature",
    "reverse_kl": "temperature",
    "jsd": "beta temperature",
    "tvd": "temperature",
    "skew_forward_kl": "skew temperature",
    "skew_reverse_kl": "skew temperature",
    "lk_alpha": "temperature",
    "lk_hybrid": "eta temperature",
    "accepted_length": "gamma temperature",
    "rank_order": ("top_k weight_power rest n_negatives ranking pairwise margin tau calibration anchor"),
}
"""Names of ``specalign.losses.LOSSES`` -> those of their hyper-parameters, known before torch is imported."""
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    **{
        name: (name,)
        for name in ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")
    },
}
"""Trackers of accelerate's -> the packages of which one must be there."""


def resolve(
    config: TrainConfig,
    recipe: Path | None,
    name: str | None = None,
    over: Mapping[str, Any] = MappingProxyType({}),
) -> TrainConfig:
    """The config with the recipe's keys, then an arm's, completed by the method.

    ``name`` is a method, or an arm of the recipe with the method that it names; None: the recipe's method, else
    that of ``config``. Those of the options ``over`` that decide what a method means (:data:`DECIDING`) go before the
    recipe's.
    """
    table = {} if recipe is None else read_table(recipe)
    arms = table.get("arms", {})
    source = str(recipe)
    if name in arms:
        table, source = _varied(table, arms[name]), f"{recipe} [arms.{name}]"
        name = name if name in PRESETS and "method" not in arms[name] else None
    values = from_table(TrainConfig, table, source)
    method = name or (values.method if "method" in table else config.method)
    if method not in PRESETS:
        raise unknown("method or arm" if arms else "method", method, [*PRESETS, *arms])
    merged = overlay(config, {k: v for k, v in table.items() if k != "method"}, values)
    deciding = {key: over[key] for key in DECIDING if over.get(key)}
    return by_method(with_options(replace(merged, method=method), deciding, "the options"))  # type: ignore[arg-type]


def by_method(config: TrainConfig) -> TrainConfig:
    """The config with what it leaves open as its method says."""
    if config.method not in PRESETS:
        raise unknown("method", config.method, PRESETS)
    own = {"objective": {"weights": {PLUGIN: 1.0}}} if config.objective.plugin else {}
    config = _filled(config, _preset_of_head(config)) if config.student.is_head else config
    return _filled(_filled(_filled(config, own), PRESETS[config.method]), OTHERWISE)


def completed(config: TrainConfig) -> TrainConfig:
    """The config with all that it leaves open: as its method says, and the rate by the start that it comes to."""
    config = by_method(config)
    if config.method in UNTRAINED:
        config = replace(config, budget=BudgetConfig(steps=0))
    if config.optimiser.lr == 0:
        config = replace(config, optimiser=replace(config.optimiser, lr=RATES[start_of(config.student)]))
    return config


def _preset_of_head(config: TrainConfig) -> dict[str, Any]:
    """What a method means for a head, which writes no responses: the teacher's in the place of its own.

    Where the recipe asks for its own words, they are drafts, the branches off a text.
    """
    given = PRESETS[config.method].get("rollout", {}).get("source") == "ground_truth"
    style = "branches" if config.rollout.student_share else "full"
    preset: dict[str, Any] = {} if given else {"rollout": {"source": "teacher", "style": style}}
    return preset | ({"student": {"start": "random"}} if config.method == "untrained" else {})


def start_of(student: StudentConfig) -> Start:
    """What training starts from; a trimmed head changes nothing in that, since what it keeps is the teacher's."""
    if student.model:
        return "trained model"
    if student.is_head:
        return "new head"
    return "bare slice" if student.start == "slice" else "aligned slice"


def _filled(base: C, named: Mapping[str, Any]) -> C:
    """``base`` with those of ``named`` that it leaves open."""
    changes: dict[str, Any] = {}
    for key, value in named.items():
        ours = getattr(base, key)
        if is_dataclass(ours):
            changes[key] = _filled(ours, value)
        elif ours is None or ours == {}:
            changes[key] = value
    return replace(base, **changes)  # type: ignore[type-var]


def _varied(recipe: Mapping[str, Any], arm: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's table with an arm's keys in the place of its own."""
    varied = dict(recipe)
    for key, value in arm.items():
        varied[key] = {**varied.get(key, {}), **value} if isinstance(value, dict) else value
    return varied


def with_prompt(config: TrainConfig) -> TrainConfig:
    """The config with the prompt's text in the place of its name."""
    text = prompt_text(config.data.prompt, config.data.source)
    return replace(config, data=replace(config.data, prompt=text))


def check(config: TrainConfig) -> None:
    """Raise UserError for values out of their ranges, and for those that do not go together."""
    checked(config)
    _check_objective(config.objective)
    _check_trackers(config.logging.trackers)
    _check_optimiser(config.optimiser)
    config.student.require_consistent()
    if config.student.is_head:
        _check_head(config)
    if config.result.metric == "probe_tau" and not config.logging.probe_prompts:
        raise UserError("result.metric = probe_tau needs logging.probe_prompts")
    if config.engine.name == "own" and config.engine != EngineConfig():
        raise UserError(
            "engine.python, engine.arguments and engine.endpoint are for engine.name = vllm: set that too"
        )
    if config.objective.reference and config.objective.keep == 1:
        raise UserError("objective.reference selects tokens: set objective.keep below 1 too")
    budget = config.budget
    if config.method not in UNTRAINED and not (budget.steps or budget.seconds or budget.tokens):
        raise UserError("no budget: set budget.steps, budget.seconds or budget.tokens")
    if config.teacher.reuse_on_disk and not config.teacher.reuse_states:
        raise UserError("teacher.reuse_on_disk says where teacher.reuse_states keeps them: set that too")
    if config.teacher.offload != "none":
        _check_offload(config)
    if config.method == "aligned" and config.student.model:
        raise UserError("method 'aligned' needs a slice of the teacher; student.model names another model")


def _check_head(config: TrainConfig) -> None:
    """What a head cannot do."""
    if config.method not in UNTRAINED and config.rollout.student_share:
        _check_own_drafts(config)
    if config.objective.reference:
        raise UserError("objective.reference selects a model's tokens; a head has none")
    if config.teacher.offload != "none":
        raise UserError(
            "teacher.offload keeps what models are trained on; a head needs the teacher: choose none"
        )
    if config.optimiser.compile:
        raise UserError("a head has one layer, and the teacher takes the time: optimiser.compile is for models")
    if config.optimiser.sharded == "weights":
        raise UserError("a head has one layer to divide: choose optimiser.sharded = moments or none")


def _check_own_drafts(config: TrainConfig) -> None:
    """What a head's own drafts need."""
    what = f"rollout.source = {config.rollout.source}"
    if config.rollout.style == "full":
        raise UserError(
            f"a head writes no responses, and {what} trains it on its own drafts: choose rollout.style = branches"
        )
    if config.student.unroll == 1:
        raise UserError(
            f"{what} trains a head on drafts from their second token on: student.unroll must be 2 or more"
        )


def _check_objective(objective: ObjectiveConfig) -> None:
    """Names and weights; what values a hyper-parameter takes, its loss knows, and a plugin also their names."""
    known: set[str] = set()
    if objective.plugin and PLUGIN not in objective.weights:
        given = " ".join(f"{name}={weight:g}" for name, weight in objective.weights.items())
        raise UserError(f"objective.plugin is not among objective.weights ({given}): add {PLUGIN}=1 to them")
    for name, weight in objective.weights.items():
        if name == PLUGIN and not objective.plugin:
            raise UserError(f"objective.weights has {PLUGIN}: say which with objective.plugin MODULE:FUNCTION")
        if name not in OBJECTIVES and name != PLUGIN:
            raise unknown("objective", name, [*OBJECTIVES, PLUGIN])
        if weight < 0:
            raise UserError(f"objective.weights.{name} must be at least 0, not {weight:g}")
        known |= set(OBJECTIVES.get(name, "").split())
    for name in objective.hyper:
        if objective.weights and name not in known and not objective.plugin:
            raise unknown(f"hyper-parameter of {' + '.join(objective.weights)}", name, known)


def _check_offload(config: TrainConfig) -> None:
    """What a run cannot do once the teacher is gone."""
    what = f"teacher.offload = {config.teacher.offload}"
    if not config.teacher.reuse_states:
        raise UserError(f"{what} trains on the states that teacher.reuse_states keeps: set that too")
    if config.method not in UNTRAINED and config.rollout.student_share > 0:
        raise UserError(
            f"{what} needs responses that are fixed, and the teacher would have to score the student's "
            f"(rollout.source = {config.rollout.source}): set rollout.source = teacher or ground_truth"
        )
    if config.logging.probe_prompts:
        raise UserError(f"{what} leaves no teacher to decode with: set logging.probe_prompts = 0")


def _check_trackers(names: Sequence[str]) -> None:
    for name in names:
        if name not in TRACKERS:
            raise unknown("logging.trackers entry", name, TRACKERS)
        if not any(find_spec(package) for package in TRACKERS[name]):
            extra = " or specalign[train]" if name == "tensorboard" else ""
            raise UserError(
                f"logging.trackers: the package of {name!r} is not installed (pip install {name}{extra})"
            )


def _check_optimiser(optimiser: OptimiserConfig) -> None:
    if optimiser.sharded == "weights" and (optimiser.compile or optimiser.precision == "float16"):
        raise UserError(
            "optimiser.sharded = weights goes with neither optimiser.compile nor optimiser.precision = float16; "
            "optimiser.sharded = moments does"
        )
