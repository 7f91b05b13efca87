"""Which of a command's runs is the best on the validation prompts, and which of the others cannot be told from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from specalign import folders
from specalign.curves import COMPARISON, FORMATS, NAME, curves_of, draw, frame, labels, save
from specalign.errors import UserError
from specalign.files import atomic_path, whole_lines
from specalign.metrics.comparisons import LEVEL, SHARE, JointTest, joint_test, sign_patterns
from specalign.metrics.statistics import Array, log_ratio
from specalign.results import Interval
from specalign.terminal import say, show
from specalign.training.config import TrainConfig
from specalign.training.course_config import Metric
from specalign.training.folder import VALIDATION
from specalign.training.runs import root_of

WEIGHTS = {"alpha": "n_positions", "agreement": "n_positions", "tau": "n_windows"}
"""Metric with a value for each prompt -> what the value counts by in the mean of all."""

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Ranked:
    """One run's place."""

    run: str
    value: float
    """The metric, pooled over the validation prompts."""
    ratio: Interval | None
    """To the best; its bounds hold for all pairs of runs together. None for the best itself."""
    p_value: float | None
    """That it is as good as the best, adjusted for all pairs."""

    @property
    def verdict(self) -> str:
        """In words."""
        if self.p_value is None:
            return "the best"
        return "lower" if self.p_value < LEVEL else "cannot be told from the best"


def ranking(runs: Mapping[str, Lines], metric: str) -> list[Ranked]:
    """The runs, best first. Raises UserError where they were validated on other prompts, or other places in them.

    Each run's value is sum_i w_i m_i / sum_i w_i over prompts i, w the same in all runs: two runs compare as the ratio
    of their sum_i w_i m_i, paired by prompt (:func:`~specalign.metrics.statistics.log_ratio`). One test takes all pairs
    together (:func:`~specalign.metrics.comparisons.joint_test`), since the best one was chosen by the same values: it
    holds whichever run that is.
    """
    places = {tuple((line["prompt_id"], line[WEIGHTS[metric]]) for line in lines) for lines in runs.values()}
    if len(places) > 1:
        raise UserError(
            f"these runs were validated at different places or draft lengths: their {metric} is no ranking"
        )
    weights = {name: np.array([line[WEIGHTS[metric]] for line in lines], float) for name, lines in runs.items()}
    parts = {name: weights[name] * [line[metric] for line in lines] for name, lines in runs.items()}
    known = {name: part for name, part in parts.items() if part.sum() > 0}
    order = sorted(known, key=lambda name: -known[name].sum())
    pairs = list(combinations(order, 2))
    together = _together([(known[low], known[high]) for high, low in pairs])
    found = []
    for name in order:
        value = float(known[name].sum() / weights[name].sum())
        if name == order[0]:
            found.append(Ranked(name, value, None, None))
        else:
            p_value = float(together.p_values[pairs.index((order[0], name))])
            log = log_ratio(known[name], known[order[0]])
            ratio = log.interval(together.critical) if log else None
            found.append(Ranked(name, value, ratio, p_value))
    return found + [Ranked(name, 0.0, None, 0.0) for name in runs if name not in known]


def compare_runs(configs: Sequence[TrainConfig]) -> Path:
    """Rank the finished runs of a command, draw their curves, and say both; returns the folder, beside the runs."""
    runs = labels([config.output for config in configs])
    metric = _per_prompt(configs[0].result.metric)
    lines = {name: each for name, run in runs.items() if (each := whole_lines(run / VALIDATION))}
    folder = root_of([config.output for config in configs]) / COMPARISON
    folders.begin(folder)
    for name in ("ranking.csv", f"{NAME}.csv", *(f"{NAME}.{ending}" for ending in FORMATS)):
        folders.require_ours(folder / name)
    found = ranking(lines, metric)
    _write(folder / "ranking.csv", found, metric)
    curves = curves_of(runs)
    with atomic_path(folder / f"{NAME}.csv") as partial:
        frame(curves).to_csv(partial, index=False)
    figure = draw(curves)
    for ending in FORMATS:
        save(figure, folder / f"{NAME}.{ending}")
    _tell(found, metric, len(next(iter(lines.values()), ())))
    for name in runs.keys() - lines.keys():
        say(f"{runs[name]} has no {VALIDATION}, as an older version left it: it is not ranked")
    say(f"ranking and learning curves: {folder}")
    return folder


def _per_prompt(metric: Metric) -> str:
    """The probe decodes a few prompts only: runs that watch it are ranked by the tau of all."""
    return "tau" if metric == "probe_tau" else metric


def _together(pairs: Sequence[tuple[Array, Array]]) -> JointTest:
    if not pairs:
        return JointTest(np.ones(0), math.inf, 1.0)
    return joint_test(*(np.stack(side, axis=1) for side in zip(*pairs, strict=True)))


def _write(path: Path, found: Sequence[Ranked], metric: str) -> None:
    import pandas as pd

    rows = [
        {
            "run": each.run,
            metric: each.value,
            "ratio_to_best": each.ratio.value if each.ratio else None,
            "low": each.ratio.low if each.ratio else None,
            "high": each.ratio.high if each.ratio else None,
            "p_adjusted": each.p_value,
            "verdict": each.verdict,
        }
        for each in found
    ]
    with atomic_path(path) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)


def _tell(found: Sequence[Ranked], metric: str, n_prompts: int) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("run", metric, "of the best's, 95 %", "", title=f"{metric} on {n_prompts} validation prompts")
    for each in found:
        table.add_row(Text(each.run), f"{each.value:.3f}", _shown(each.ratio), each.verdict)
    show(table)
    if len(found) > 1 and len(sign_patterns(n_prompts)) * SHARE <= 1:
        say(f"With {n_prompts} prompts no difference can be shown: raise data.n_validation.")
    elif len(found) > 1:
        say(
            "Intervals are over prompts, for all pairs together; another training seed moves a run too. The best was "
            "chosen by these prompts, which flatter it: data.n_test or specalign-bench judge it by others."
        )


def _shown(ratio: Interval | None) -> str:
    if ratio is None:
        return ""
    bounds = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"{ratio.value:.3f}{bounds}"
