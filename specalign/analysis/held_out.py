"""Objectives on test prompts that nothing had looked at: intervals over prompts and seeds, from held_out.jsonl.

A training run's held_out.jsonl has one line a prompt; RUN/held_out.json of a study keeps those of all its runs. Runs of
one seed share start, order and tokens whatever the objective, so objectives are compared pair by pair of seeds, on
the same prompts.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from scipy import stats

from specalign.errors import UserError
from specalign.files import byte_lines, read_text
from specalign.results import Interval
from specalign.run_files import first_problem

HELD_OUT = "held_out.json"
FIGURES = {"alpha": "n_positions", "agreement": "n_positions", "tau": "n_windows"}
"""Figure -> what its mean over prompts is weighted by."""


@dataclass(frozen=True)
class PromptScore:
    """A line of held_out.jsonl: one test prompt, along the teacher's own response to it."""

    prompt_id: str
    n_positions: int
    alpha: float
    """Mean sum_v min(p, q): expected acceptance rate at temperature 1."""
    agreement: float
    """Share of positions with the same argmax: expected acceptance rate at temperature 0."""
    gamma: int
    n_windows: int
    """Positions with a whole window of gamma behind them."""
    tau: float
    """Expected tokens per target call at gamma, mean over the windows."""
    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


HeldOut = dict[str, dict[str, list[PromptScore]]]
"""Objective -> seed -> its test prompts."""
_SCORE, _HELD_OUT = TypeAdapter(PromptScore), TypeAdapter(HeldOut)


@dataclass(frozen=True)
class Difference:
    """One objective less another, by one figure."""

    first: str
    second: str
    figure: str
    difference: Interval
    """With its 95 % interval over prompts and seeds."""
    n_seeds: int
    """Pairs of seeds."""
    p_value: float
    """One-sided, in the direction that came out: of the 2^n ways to swap the pairs of seeds, the share that is at least
    as far; 1/2^n at best."""


def collect(folder: Path) -> HeldOut:
    """What the training runs OBJECTIVE/seed-N below ``folder`` left; empty where no run had test prompts."""
    found: HeldOut = defaultdict(dict)
    for path in sorted(folder.glob("*/seed-*/held_out.jsonl")):
        found[path.parts[-3]][path.parts[-2]] = read_scores(path)
    return dict(found)


def read_scores(path: Path) -> list[PromptScore]:
    """Read held_out.jsonl. A damaged line raises UserError with its number."""
    scores = []
    for number, line in enumerate(byte_lines(path), start=1):
        try:
            scores.append(_SCORE.validate_json(line))
        except ValidationError as error:
            raise UserError(f"{path}, line {number}: {first_problem(error)}") from None
    return scores


def read_held_out(run: Path) -> HeldOut:
    """RUN/held_out.json; empty where there is none."""
    path = run / HELD_OUT
    if not path.is_file():
        return {}
    try:
        return _HELD_OUT.validate_json(read_text(path))
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}") from None


def as_json(found: HeldOut) -> dict[str, object]:
    """For a file."""
    return dict(json.loads(_HELD_OUT.dump_json(found)))


def mean(scores: Sequence[PromptScore], figure: str) -> float:
    """Pooled over prompts."""
    values, weights = _columns(scores, figure)
    return float(np.average(values, weights=weights))


def differences(found: HeldOut, figure: str) -> list[Difference]:
    """Every two objectives that share a seed and prompts."""
    pairs = itertools.combinations(found, 2)
    return [
        compare(found, first, second, figure)
        for first, second in pairs
        if found[first].keys() & found[second].keys()
    ]


def compare(found: HeldOut, first: str, second: str, figure: str) -> Difference:
    """Objective against objective, over the seeds that both have.

    d_s is the difference of the pooled means of pair s, d their mean over n pairs. Two variances: that over prompts,
    linearised (each prompt's part averaged over the pairs), and that over pairs, var(d_s) / n. The interval is
    d ± sqrt(a² + b²), a and b the half-widths of either source's t interval (m - 1 and n - 1 degrees of freedom): it
    holds the difference at least as often as it says. One pair: over prompts alone.
    """
    seeds = sorted(found[first].keys() & found[second].keys())
    both = [(found[first][seed], found[second][seed]) for seed in seeds]
    by_seed = np.array([mean(a, figure) - mean(b, figure) for a, b in both])
    residuals = np.mean([_residuals(a, figure, b) for a, b in both], axis=0)
    m, n = len(residuals), len(by_seed)
    parts = [(m / max(1, m - 1) * float(np.sum(residuals**2)), m - 1)]
    if n > 1:
        parts.append((float(np.var(by_seed, ddof=1)) / n, n - 1))
    return Difference(first, second, figure, _interval(float(by_seed.mean()), parts), n, swapped_share(by_seed))


def swapped_share(differences_: Sequence[float] | np.ndarray) -> float:
    """The share of the 2^n sign patterns whose sum is at least as far in the observed direction."""
    values = np.asarray(differences_)
    signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    return float(np.mean(np.abs(values.sum()) <= signs @ values * np.sign(values.sum() or 1) + 1e-12))


def _residuals(ours: Sequence[PromptScore], figure: str, theirs: Sequence[PromptScore]) -> np.ndarray:
    """Each prompt's part in the difference of the pooled means, 0 on average."""
    values, weights = _columns(ours, figure)
    others, other_weights = _columns(theirs, figure)
    if [score.prompt_id for score in ours] != [score.prompt_id for score in theirs]:
        raise UserError("these runs were scored on different test prompts")
    return np.asarray(
        weights * (values - np.average(values, weights=weights)) / weights.sum()
        - other_weights * (others - np.average(others, weights=other_weights)) / other_weights.sum()
    )


def _columns(scores: Sequence[PromptScore], figure: str) -> tuple[np.ndarray, np.ndarray]:
    values = np.array([getattr(score, figure) for score in scores])
    return values, np.array([getattr(score, FIGURES[figure]) for score in scores], dtype=float)


def _interval(value: float, parts: Sequence[tuple[float, int]]) -> Interval:
    """``parts``: (variance, degrees of freedom) of independent sources; half-widths are added in quadrature."""
    halves = [stats.t.ppf(0.975, freedom) * variance**0.5 for variance, freedom in parts if freedom > 0]
    half = float(np.hypot.reduce(halves)) if halves else 0.0
    return Interval(value, value - half, value + half) if half else Interval(value)


def best(found: Mapping[str, Mapping[str, Sequence[PromptScore]]], figure: str) -> str:
    """The objective with the highest mean over its seeds."""
    return max(found, key=lambda arm: np.mean([mean(scores, figure) for scores in found[arm].values()]))
