"""The study's answer from its own files: which objective, for which decoding, by how much.

    python benchmarks/study_answer.py RUN [--training runs/study] [--baseline ARM]

RUN is the folder of the study's benchmark; its drafters are named ARM-SEED. ``--training`` keeps the validation curves
of the training runs as RUN/training.json. ``--baseline`` is the objective that the others are compared with
(forward_kl). Writes RUN/answer.md and RUN/learning.png; equal files give equal answers.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from specalign.analysis.seeds import FIGURES, Comparison, Drafter, PromptCells, Setting, compare
from specalign.files import atomic_path, write_json
from specalign.metrics.comparisons import SeedComparison, compare_seeds
from specalign.probes import RunFiles, read_run
from specalign.reports.style import new_figure
from specalign.reports.tables import interval, markdown_table
from specalign.results import LOOKUP, TARGET, Interval

TRAINING = "training.json"
BASELINE = "forward_kl"
SIGNIFICANT = 0.05
LEAST_RANKED = 8
"""Drafters below which a rank correlation says nothing."""
RESAMPLES = 5000
Curves = dict[str, dict[str, list[dict[str, float]]]]
"""Arm -> seed -> its validations."""


def main() -> None:
    """Write the answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--training", type=Path, help="folder of the training runs, ARM/seed-N")
    parser.add_argument("--baseline", default=BASELINE, metavar="ARM", help="the objective to compare with")
    args = parser.parse_args()
    if args.training:
        write_json(args.run / TRAINING, curves_of(args.training))
    curves: Curves = json.loads((args.run / TRAINING).read_text(encoding="utf-8"))
    draw(curves, args.run / "learning.png")
    run = read_run(args.run)
    if not any(len(members) > 1 for members in _arms(run).values()):
        parser.error(
            f"{args.run} has no objective with two seeds (drafters ARM-0, ARM-1): nothing to compare; "
            f"the curves are in {args.run / 'learning.png'}"
        )
    if args.baseline not in _arms(run):
        parser.error(f"no drafter of the objective {args.baseline!r} (objectives: {', '.join(_arms(run))})")
    text = "\n".join(answer(run, curves, args.baseline)) + "\n"
    with atomic_path(args.run / "answer.md") as partial:
        partial.write_text(text, encoding="utf-8")
    print(text)


def curves_of(folder: Path) -> Curves:
    """The validations of every training run below ``folder``."""
    kept = ("step", "n_tokens", "train_s", "alpha", "alpha_se", "agreement", "tau")
    found: Curves = defaultdict(dict)
    for path in sorted(folder.glob("*/seed-*/train.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        validations = [row for row in rows if row["kind"] == "validation"]
        found[path.parts[-3]][path.parts[-2]] = [{key: row[key] for key in kept} for row in validations]
    return found


def answer(run: RunFiles, curves: Curves, baseline: str = BASELINE) -> list[str]:
    """The page."""
    arms = _arms(run)
    settings = sorted({(row.temperature, row.gamma) for row in run.result.rows if row.gamma})
    trained = {arm: members for arm, members in arms.items() if len(members) > 1}
    compared = compare([run], trained)
    lines = ["# Which objective, for which decoding", ""]
    for setting in settings:
        lines += [_verdict(run, arms, compared, setting), ""]
    lines += [
        _held_out(curves, "alpha", "α at temperature 1"),
        "",
        _held_out(curves, "agreement", "argmax agreement"),
        "",
    ]
    lines += [*_correlation(run, arms), *_hypotheses(compared, settings, baseline)]
    for setting in settings:
        lines += [
            f"## Temperature {setting[0]:g}, γ = {setting[1]}",
            "",
            *_table(run, arms, compared, setting, baseline),
            "",
        ]
    lines += ["## Training", "", *_training(curves), "", "![validation α while training](learning.png)", ""]
    return [*lines, *(line.replace(BASELINE, baseline) for line in LEGEND)]


LEGEND = [
    "Speed-up: the plain target's wall seconds per token over the drafter's, all seeds of an objective together;",
    "brackets are 95 % intervals of a hierarchical bootstrap over seeds and prompts. `against forward_kl` is a ratio",
    "with its interval, the Holm-corrected p over all pairs of objectives, and the smallest difference that would have",
    "shown (power 80 %). With n seeds the doubt between seeds is understated by 1/n. Every number is computed",
    "from `records.jsonl`, `probes.jsonl` and `training.json` here by `python benchmarks/study_answer.py` with",
    "the folder's name.",
]


def _arms(run: RunFiles) -> dict[str, list[Drafter]]:
    """Objective -> its drafters."""
    found: dict[str, list[Drafter]] = defaultdict(list)
    for info in run.result.drafters:
        arm, dash, seed = info.name.rpartition("-")
        found[arm if dash and seed.isdigit() else info.name].append((0, info.name))
    return found


def _speedup(run: RunFiles, members: Sequence[str], setting: Setting) -> Interval:
    """Pooled over the members; an interval over members and prompts."""
    return _pooled(run, members, setting).ratio


def _pooled(run: RunFiles, members: Sequence[str], setting: Setting) -> SeedComparison:
    plain = FIGURES["speed"](run, TARGET, (setting[0], 0))
    own = [FIGURES["speed"](run, name, setting) for name in members]
    prompts = sorted(set(plain).intersection(*own))
    return compare_seeds([_cells(plain, prompts)], [_cells(cells, prompts) for cells in own])


def _cells(cells: PromptCells, prompts: Sequence[str]) -> tuple[list[float], list[float]]:
    return [cells[prompt][0] for prompt in prompts], [cells[prompt][1] for prompt in prompts]


def _mean(run: RunFiles, members: Sequence[str], setting: Setting, figure: str) -> float:
    cells = [cell for name in members for cell in FIGURES[figure](run, name, setting).values()]
    return sum(cell[0] for cell in cells) / sum(cell[1] for cell in cells)


def _verdict(
    run: RunFiles, arms: dict[str, list[Drafter]], compared: Sequence[Comparison], setting: Setting
) -> str:
    """Who leads, whether that is more than noise, and whether it pays."""
    speeds = {
        arm: _speedup(run, [name for _, name in members], setting)
        for arm, members in arms.items()
        if len(members) > 1
    }
    best = max(speeds, key=lambda arm: speeds[arm].value)
    behind = [
        other
        for one in compared
        if one.figure == "speed" and one.setting == setting and best in one.pair and one.p_value < SIGNIFICANT
        for other in one.pair
        if other != best
    ]
    told = (
        f"significantly ahead of {', '.join(behind)}"
        if behind
        else "ahead of no other objective by more than noise"
    )
    lookup = _speedup(run, [LOOKUP], setting) if any(row.method == LOOKUP for row in run.result.rows) else None
    beside = f"; prompt lookup, without training: {interval(lookup, unit='x')}" if lookup else ""
    return (
        f"**Temperature {setting[0]:g}: {best} is the fastest trained objective, "
        f"{interval(speeds[best], unit='x')} over the plain target**, {told}{beside}."
    )


def _held_out(curves: Curves, key: str, name: str) -> str:
    """Which arm ends highest on the validation prompts, along the teacher's own responses, and how clearly."""
    ends = {arm: [rows[-1][key] for rows in seeds.values()] for arm, seeds in curves.items()}
    best = max(ends, key=lambda arm: np.mean(ends[arm]))
    others = {arm: max(values) for arm, values in ends.items() if arm != best}
    closest = max(others, key=lambda arm: others[arm])
    apart = min(ends[best]) > others[closest]
    verdict = (
        f"each of its seeds above every seed of every other (the closest: {closest}, at most {others[closest]:.3f})"
        if apart
        else f"within the seeds of others (up to {others[closest]:.3f}, {closest})"
    )
    return (
        f"**Teacher-forced {name} on held-out prompts: {best} ends highest, {np.mean(ends[best]):.3f} "
        f"({_range(ends[best])})**, {verdict}."
    )


def _hypotheses(compared: Sequence[Comparison], settings: Sequence[Setting], baseline: str) -> list[str]:
    """The hypotheses of the study's design.md, each by expected acceptance and by speed; they are about forward KL."""
    if baseline != BASELINE:
        return []
    asked = [
        ("1. At temperature 0 the pure rank loss accepts more than forward KL", "rank_pure", 0.0),
        ("2. When sampling, JSD accepts more than forward KL", "jsd", 1.0),
        ("2. When sampling, the pure rank loss accepts less than forward KL", "rank_pure", 1.0),
        (
            "3. On-policy branches accept more than forward KL on the teacher's responses (temperature 0)",
            "gkd",
            0.0,
        ),
        ("3. The same at temperature 1", "gkd", 1.0),
    ]
    lines = ["| hypothesis | α, against forward_kl | speed, against forward_kl |", "| --- | --- | --- |"]
    for text, arm, temperature in asked:
        cells = [
            _against(compared, arm, setting, figure, baseline)
            for figure in ("alpha expected", "speed")
            for setting in settings
            if setting[0] == temperature
        ]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return [*lines, ""]


def _against(compared: Sequence[Comparison], arm: str, setting: Setting, figure: str, baseline: str) -> str:
    """The ratio of an arm to the baseline, with its interval, p and the difference that would show."""
    for one in compared:
        if one.figure == figure and one.setting == setting and set(one.pair) == {arm, baseline}:
            ratio = one.found.ratio if one.pair[0] == arm else _inverse(one.found.ratio)
            seen = "" if one.found.detectable is None else f", {one.found.detectable:.0%} would show"
            verdict = "" if one.p_value < SIGNIFICANT else "no difference: "
            return f"{verdict}{interval(ratio, 3, unit='x')} (p = {one.p_value:.2g}{seen})"
    return "–"


def _inverse(ratio: Interval) -> Interval:
    low, high = ratio.low, ratio.high
    return Interval(1 / ratio.value, None if high is None else 1 / high, None if low is None else 1 / low)


def _table(
    run: RunFiles,
    arms: dict[str, list[Drafter]],
    compared: Sequence[Comparison],
    setting: Setting,
    baseline: str,
) -> list[str]:
    header = [
        "objective",
        "seeds",
        "speed-up",
        "α expected",
        "τ",
        f"speed, against {baseline}",
        f"α, against {baseline}",
    ]
    lines = []
    for arm, members in {LOOKUP: [(0, LOOKUP)], **arms}.items():
        names = [name for _, name in members]
        row = [arm, str(len(names)), interval(_speedup(run, names, setting), unit="x")]
        row += [f"{_mean(run, names, setting, figure):.3f}" for figure in ("alpha expected", "tau")]
        row += [_against(compared, arm, setting, figure, baseline) for figure in ("speed", "alpha expected")]
        lines.append(row)
    lines.sort(key=lambda row: -float(row[2].split("x")[0]))
    return markdown_table(header, lines)


def _correlation(run: RunFiles, arms: dict[str, list[Drafter]]) -> list[str]:
    """Teacher-forced acceptance against measured speed-up, over the trained and untrained drafters of two layers."""
    names = {name for members in arms.values() for _, name in members}
    if len(names) < LEAST_RANKED:
        return []
    lines = []
    for temperature in sorted({row.temperature for row in run.result.rows}):
        rows = [row for row in run.result.rows if row.method in names and row.temperature == temperature]
        pairs = [
            (row.alpha_teacher_forced.value, row.speedup.value)
            for row in rows
            if row.alpha_teacher_forced and row.speedup
        ]
        x, y = map(np.asarray, zip(*pairs, strict=True))
        generator = np.random.default_rng(0)
        draws = []
        for _ in range(RESAMPLES):
            chosen = generator.integers(len(x), size=len(x))
            if len(set(x[chosen])) > 1 and len(set(y[chosen])) > 1:
                draws.append(stats.spearmanr(x[chosen], y[chosen]).statistic)
        low, high = np.percentile(draws, [2.5, 97.5])
        lines.append(
            f"Teacher-forced α ranks the {len(x)} drafters' measured speed-up at temperature {temperature:g} with a "
            f"Spearman correlation of {stats.spearmanr(x, y).statistic:.2f} [{low:.2f}, {high:.2f}]."
        )
    return [*lines, ""]


def _training(curves: Curves) -> list[str]:
    header = ["arm", "seeds", "tokens", "training, s", "validation α", "argmax agreement"]
    lines = []
    for arm, seeds in curves.items():
        last = [rows[-1] for rows in seeds.values()]
        spread = [
            f"{np.mean([row[key] for row in last]):.3f} ({_range([row[key] for row in last])})"
            for key in ("alpha", "agreement")
        ]
        lines.append(
            [
                arm,
                str(len(last)),
                f"{np.mean([row['n_tokens'] for row in last]):,.0f}",
                f"{np.mean([row['train_s'] for row in last]):.0f}",
                *spread,
            ]
        )
    lines.sort(key=lambda row: row[4], reverse=True)
    return markdown_table(header, lines)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else "one seed"


def draw(curves: Curves, path: Path) -> None:
    """Validation alpha and argmax agreement over trained tokens, a line an arm (the mean of its seeds)."""
    figure, panels = new_figure(11, 4.4, 2)
    shown = {arm: seeds for arm, seeds in curves.items() if len(next(iter(seeds.values()))) > 1}
    for axes, key, title in zip(
        panels,
        ("alpha", "agreement"),
        ("α at temperature 1 (mean Σ min(p, q))", "argmax agreement (α at temperature 0)"),
        strict=True,
    ):
        for place, (arm, seeds) in enumerate(shown.items()):
            rows: list[list[dict[str, Any]]] = [list(points) for points in zip(*seeds.values(), strict=False)]
            x = [np.mean([point["n_tokens"] for point in points]) for points in rows]
            y = [np.mean([point[key] for point in points]) for points in rows]
            style = "-" if place < 10 else "--"
            axes.plot(x, y, style, marker="o", markersize=3, linewidth=1.4, label=arm, color=f"C{place % 10}")
        axes.set(title=title, xlabel="trained tokens")
    panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    main()
