"""Objectives against each other, over training seeds: a benchmark whose drafters are named OBJECTIVE-SEED."""

from __future__ import annotations

import json
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from scipy import stats

from specalign.analysis.partial import read_complete
from specalign.analysis.seeds import FIGURES, Comparison, Drafter, PromptCells, Setting, compare
from specalign.curves import LOG, PROVENANCE
from specalign.errors import UserError
from specalign.files import whole_lines
from specalign.metrics.comparisons import SeedComparison, compare_seeds
from specalign.results import LOOKUP, TARGET, Interval
from specalign.run_files import RunFiles, first_problem

TRAINING, HYPOTHESES = "training.json", "hypotheses.toml"
SIGNIFICANT = 0.05
LEAST_RANKED = 8
"""Drafters below which a rank correlation says nothing."""
RESAMPLES = 5000
Curves = dict[str, dict[str, list[dict[str, float]]]]
"""Objective -> seed -> its validations."""
Arms = dict[str, list[Drafter]]
"""Objective -> its drafters, one a training seed."""
T = TypeVar("T")


@dataclass(frozen=True)
class Hypothesis:
    """Something that was claimed before the study ran."""

    claim: str
    arm: str
    """The objective that it is about, against the baseline."""
    temperature: float
    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Asked:
    """The hypotheses of a study, all against one objective; RUN/hypotheses.toml."""

    baseline: str = ""
    hypothesis: tuple[Hypothesis, ...] = ()
    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Study:
    """What a study rests on."""

    run: RunFiles
    curves: Curves
    baseline: str
    """The objective that the others are compared with."""
    arms: Arms
    settings: list[Setting]
    compared: list[Comparison]
    """Every pair of objectives, at least one of several seeds, by every figure."""
    hypotheses: tuple[Hypothesis, ...]
    """Those about the baseline."""


@dataclass(frozen=True)
class Fastest:
    """The fastest trained objective at one setting."""

    setting: Setting
    arm: str
    speedup: Interval
    """Over the plain target, all its seeds together."""
    ahead_of: list[str]
    """Objectives that are significantly slower."""
    lookup: Interval | None
    """What prompt lookup gives, without training; None where it was not measured."""


@dataclass(frozen=True)
class HeldOut:
    """The objective that ends highest on the validation prompts."""

    arm: str
    ends: list[float]
    """Its last validations, one a seed."""
    closest: str
    """The objective with the highest single seed among the others."""
    others_best: float

    @property
    def apart(self) -> bool:
        """Whether each of its seeds lies above every seed of every other."""
        return min(self.ends) > self.others_best


@dataclass(frozen=True)
class Correlation:
    """How well teacher-forced acceptance ranks the drafters by measured speed-up at one temperature."""

    temperature: float
    n: int
    """Drafters."""
    spearman: Interval
    """Percentile bootstrap over drafters."""


def trained(folder: Path) -> Curves:
    """The validations of every complete training run OBJECTIVE/seed-N below ``folder``; UserError without any."""
    kept = ("step", "n_tokens", "train_s", "alpha", "alpha_se", "agreement", "tau")
    found: Curves = defaultdict(dict)
    left_out = unfinished(folder)
    for path in sorted(folder.glob(f"*/seed-*/{LOG}")):
        validations = [line for line in whole_lines(path) if line["kind"] == "validation"]
        if validations and path.parent.relative_to(folder).as_posix() not in left_out:
            found[path.parts[-3]][path.parts[-2]] = [{key: row[key] for key in kept} for row in validations]
    if not found:
        raise UserError(f"{folder} has no complete training runs OBJECTIVE/seed-N")
    return dict(found)


def unfinished(folder: Path) -> list[str]:
    """OBJECTIVE/seed-N of the training runs below ``folder`` that say of themselves that they are not complete."""
    found = []
    for path in sorted(folder.glob(f"*/seed-*/{PROVENANCE}")):
        try:
            status = json.loads(path.read_text(encoding="utf-8"))["status"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise UserError(f"{path} is damaged") from None
        if status != "complete":
            found.append(path.parent.relative_to(folder).as_posix())
    return found


def read_curves(folder: Path) -> Curves:
    """RUN/training.json. Raises UserError where it is missing or not valid."""
    return _read(folder / TRAINING, TypeAdapter(Curves), "--training FOLDER makes it of the training runs")


def _read(path: Path, form: TypeAdapter[T], advice: str) -> T:
    if not path.is_file():
        raise UserError(f"no such file: {path}; {advice}")
    try:
        return form.validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}") from None


def _read_hypotheses(folder: Path) -> Asked:
    path = folder / HYPOTHESES
    if not path.is_file():
        return Asked()
    try:
        return TypeAdapter(Asked).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path}: {problem}") from None


def read_study(folder: Path, baseline: str = "", curves: Curves | None = None) -> Study:
    """Read a study's benchmark with its training curves and hypotheses.

    ``baseline`` is the objective that the others are compared with; empty: the hypotheses', else the first with
    several seeds. ``curves`` are those that :func:`trained` found; None: those that the folder keeps. Raises UserError
    for a run that is not complete, where no objective has two seeds, for an unknown baseline, and where fewer than two
    objectives have curves.
    """
    run, asked = read_complete(folder), _read_hypotheses(folder)
    arms = _arms(run)
    seeded = {arm: members for arm, members in arms.items() if len(members) > 1}
    if not seeded:
        raise UserError(
            f"{folder} has no objective with two seeds (drafters NAME-0, NAME-1): nothing to compare"
        )
    baseline = baseline or asked.baseline or next(iter(seeded))
    if baseline not in arms:
        raise UserError(f"no drafter of the objective {baseline!r} (objectives: {', '.join(arms)})")
    settings = sorted({(row.temperature, row.gamma) for row in run.result.rows if row.gamma})
    hypotheses = asked.hypothesis if asked.baseline == baseline else ()
    curves = read_curves(folder) if curves is None else curves
    if len(curves) < 2:
        raise UserError(f"a study compares two objectives at least; trained: {', '.join(curves) or 'none'}")
    return Study(run, curves, baseline, arms, settings, compare([run], seeded), tuple(hypotheses))


def _arms(run: RunFiles) -> Arms:
    found: Arms = defaultdict(list)
    for info in run.result.drafters:
        arm, dash, seed = info.name.rpartition("-")
        found[arm if dash and seed.isdigit() else info.name].append((0, info.name))
    return found


def has_lookup(run: RunFiles) -> bool:
    """Whether prompt lookup stands beside the objectives."""
    return any(row.method == LOOKUP for row in run.result.rows)


def pooled_speedup(run: RunFiles, members: Sequence[str], setting: Setting) -> Interval:
    """Pooled over the drafters; an interval over drafters and prompts."""
    return _pooled(run, members, setting).ratio


def _pooled(run: RunFiles, members: Sequence[str], setting: Setting) -> SeedComparison:
    plain = FIGURES["speed"](run, TARGET, (setting[0], 0))
    own = [FIGURES["speed"](run, name, setting) for name in members]
    prompts = sorted(set(plain).intersection(*own))
    return compare_seeds([_cells(plain, prompts)], [_cells(cells, prompts) for cells in own])


def _cells(cells: PromptCells, prompts: Sequence[str]) -> tuple[list[float], list[float]]:
    return [cells[prompt][0] for prompt in prompts], [cells[prompt][1] for prompt in prompts]


def pooled_mean(run: RunFiles, members: Sequence[str], setting: Setting, figure: str) -> float:
    """A figure of ``seeds.FIGURES``, pooled over the drafters."""
    cells = [cell for name in members for cell in FIGURES[figure](run, name, setting).values()]
    return sum(cell[0] for cell in cells) / sum(cell[1] for cell in cells)


def fastest(study: Study, setting: Setting) -> Fastest:
    """Who leads, and ahead of whom by more than noise."""
    run = study.run
    speeds = {
        arm: pooled_speedup(run, [name for _, name in members], setting)
        for arm, members in study.arms.items()
        if len(members) > 1
    }
    best = max(speeds, key=lambda arm: speeds[arm].value)
    behind = [
        other
        for one in study.compared
        if one.figure == "speed" and one.setting == setting and best in one.pair and one.p_value < SIGNIFICANT
        for other in one.pair
        if other != best
    ]
    lookup = pooled_speedup(run, [LOOKUP], setting) if has_lookup(run) else None
    return Fastest(setting, best, speeds[best], behind, lookup)


def held_out(curves: Curves, key: str) -> HeldOut:
    """Which objective ends highest on the validation prompts, along the teacher's own responses."""
    ends = {arm: [rows[-1][key] for rows in seeds.values()] for arm, seeds in curves.items()}
    best = max(ends, key=lambda arm: np.mean(ends[arm]))
    others = {arm: max(values) for arm, values in ends.items() if arm != best}
    closest = max(others, key=lambda arm: others[arm])
    return HeldOut(best, ends[best], closest, others[closest])


def against(study: Study, arm: str, setting: Setting, figure: str) -> Comparison | None:
    """An objective against the baseline, its ratio that way round; None where they were not compared."""
    for one in study.compared:
        if one.figure == figure and one.setting == setting and set(one.pair) == {arm, study.baseline}:
            return one if one.pair[0] == arm else _turned(one)
    return None


def _turned(one: Comparison) -> Comparison:
    ratio, found = one.found.ratio, one.found
    low, high = ratio.low, ratio.high
    turned = Interval(1 / ratio.value, None if high is None else 1 / high, None if low is None else 1 / low)
    n_seeds = one.n_seeds[1], one.n_seeds[0]
    found = SeedComparison(turned, found.p_value, found.detectable)
    return replace(one, pair=(one.pair[1], one.pair[0]), n_seeds=n_seeds, found=found)


def correlations(study: Study) -> list[Correlation]:
    """Teacher-forced acceptance against measured speed-up over all drafters; empty where they are few."""
    names = {name for members in study.arms.values() for _, name in members}
    rows = [row for row in study.run.result.rows if row.method in names]
    found = []
    for temperature in sorted({row.temperature for row in rows}):
        pairs = [
            (row.alpha_teacher_forced.value, row.speedup.value)
            for row in rows
            if row.temperature == temperature and row.alpha_teacher_forced and row.speedup
        ]
        if len(names) >= LEAST_RANKED and pairs:
            found.append(
                Correlation(temperature, len(pairs), _spearman(*map(np.asarray, zip(*pairs, strict=True))))
            )
    return found


def _spearman(x: np.ndarray, y: np.ndarray) -> Interval:
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(len(x), size=len(x))
        if len(set(x[chosen])) > 1 and len(set(y[chosen])) > 1:
            draws.append(stats.spearmanr(x[chosen], y[chosen]).statistic)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(stats.spearmanr(x, y).statistic), float(low), float(high))
