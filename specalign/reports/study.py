"""The study's answer as a page: which objective, for which decoding, by how much; and its learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from specalign.analysis.held_out import HELD_OUT, HeldOut, as_json
from specalign.analysis.seeds import Comparison, Setting
from specalign.analysis.study import (
    SIGNIFICANT,
    TRAINING,
    Curves,
    Fastest,
    Study,
    against,
    correlations,
    fastest,
    has_lookup,
    held_out,
    pooled_mean,
    pooled_speedup,
)
from specalign.files import write_json, write_text
from specalign.reports.held_out import held_out_lines
from specalign.reports.style import new_figure, save_png
from specalign.reports.tables import NONE, interval, markdown_table
from specalign.results import LOOKUP

ANSWER_FILE, PICTURE = "answer.md", "learning.png"
TITLES = {
    "alpha": "α at temperature 1 (mean Σ min(p, q))",
    "agreement": "argmax agreement (α at temperature 0)",
}
LEGEND = """\
Speed-up: the plain target's seconds per token over the drafter's at the plain target's output lengths, all seeds of an
objective together; brackets are 95 % intervals over seeds and prompts. `against {baseline}` is a ratio with its
interval, the Holm-corrected p over all pairs of objectives, figures and settings, and the smallest difference that
would have shown (power 80 %) were it the only one. Objectives of the same training seeds are paired by them. Every
number is computed from the records, the probes and `training.json` here by `specalign-bench study` with
the folder's name."""


def write_study(folder: Path, study: Study, tested: HeldOut) -> Path:
    """Write what a study rests on, and its answer, into the run folder; equal files give equal answers."""
    text = "\n".join([*answer(study), *held_out_lines(tested)]) + "\n"
    write_json(folder / TRAINING, study.curves)
    if tested:
        write_json(folder / HELD_OUT, as_json(tested))
    draw(study.curves, folder / PICTURE)
    write_text(folder / ANSWER_FILE, text)
    return folder / ANSWER_FILE


def answer(study: Study) -> list[str]:
    """The page."""
    lines = ["# Which objective, for which decoding", ""]
    for setting in study.settings:
        lines += [_leads(fastest(study, setting)), ""]
    for key, name in (("alpha", "α at temperature 1"), ("agreement", "argmax agreement")):
        lines += [_held_out(study.curves, key, name), ""]
    lines += [*_correlations(study), *_hypotheses(study)]
    for setting in study.settings:
        title = f"## Temperature {setting[0]:g}, γ = {setting[1]}"
        lines += [title, "", *_table(study, setting), ""]
    lines += ["## Training", "", *_training(study.curves), "", f"![validation α while training]({PICTURE})", ""]
    return [*lines, *LEGEND.format(baseline=study.baseline).split("\n")]


def _leads(found: Fastest) -> str:
    told = (
        f"significantly ahead of {', '.join(found.ahead_of)}"
        if found.ahead_of
        else "ahead of no other objective by more than noise"
    )
    beside = f"; prompt lookup, without training: {interval(found.lookup, unit='x')}" if found.lookup else ""
    return (
        f"**Temperature {found.setting[0]:g}: {found.arm} is the fastest trained objective, "
        f"{interval(found.speedup, unit='x')} over the plain target**, {told}{beside}."
    )


def _held_out(curves: Curves, key: str, name: str) -> str:
    best = held_out(curves, key)
    verdict = (
        f"each of its seeds above every seed of every other (the closest: {best.closest}, "
        f"at most {best.others_best:.3f})"
        if best.apart
        else f"within the seeds of others (up to {best.others_best:.3f}, {best.closest})"
    )
    return (
        f"**Teacher-forced {name} on validation prompts, which also chose the arms and the rate: {best.arm} ends "
        f"highest, {np.mean(best.ends):.3f} ({_range(best.ends)})**, {verdict}."
    )


def _correlations(study: Study) -> list[str]:
    lines = [
        f"Teacher-forced α ranks the {one.n} drafters' measured speed-up at temperature {one.temperature:g} with a "
        f"Spearman correlation of {interval(one.spearman)}."
        for one in correlations(study)
    ]
    return [*lines, ""] if lines else []


def _hypotheses(study: Study) -> list[str]:
    """The hypotheses of the study's hypotheses.toml, each by expected acceptance and by speed."""
    if not study.hypotheses:
        return []
    baseline = study.baseline
    lines = [f"| hypothesis | α, against {baseline} | speed, against {baseline} |", "| --- | --- | --- |"]
    for asked in study.hypotheses:
        cells = [
            _against(against(study, asked.arm, setting, figure))
            for figure in ("alpha expected", "speed")
            for setting in study.settings
            if setting[0] == asked.temperature
        ]
        lines.append(f"| {asked.claim} | {' | '.join(cells)} |")
    return [*lines, ""]


def _against(one: Comparison | None) -> str:
    """The ratio with its interval, p and the difference that would show."""
    if one is None:
        return NONE
    seen = "" if one.found.detectable is None else f", {one.found.detectable:.0%} would show"
    verdict = "" if one.p_value < SIGNIFICANT else "no difference: "
    return f"{verdict}{interval(one.found.ratio, 3, unit='x')} (p = {one.p_value:.2g}{seen})"


def _table(study: Study, setting: Setting) -> list[str]:
    header = ["objective", "seeds", "speed-up", "α expected", "τ"]
    header += [f"{figure}, against {study.baseline}" for figure in ("speed", "α")]
    lines = []
    lookup = {LOOKUP: [(0, LOOKUP)]} if has_lookup(study.run) else {}
    for arm, members in {**lookup, **study.arms}.items():
        names = [name for _, name in members]
        row = [arm, str(len(names)), interval(pooled_speedup(study.run, names, setting), unit="x")]
        row += [f"{pooled_mean(study.run, names, setting, figure):.3f}" for figure in ("alpha expected", "tau")]
        row += [_against(against(study, arm, setting, figure)) for figure in ("speed", "alpha expected")]
        lines.append(row)
    lines.sort(key=lambda row: -float(row[2].split("x")[0]))
    return markdown_table(header, lines)


def _training(curves: Curves) -> list[str]:
    header = ["arm", "seeds", "tokens", "training, s", "validation α", "argmax agreement"]
    lines = []
    for arm, seeds in curves.items():
        last = [rows[-1] for rows in seeds.values()]
        tokens, seconds = (np.mean([row[key] for row in last]) for key in ("n_tokens", "train_s"))
        ends = [[row[key] for row in last] for key in ("alpha", "agreement")]
        spread = [f"{np.mean(own):.3f} ({_range(own)})" for own in ends]
        lines.append([arm, str(len(last)), f"{tokens:,.0f}", f"{seconds:.0f}", *spread])
    lines.sort(key=lambda row: row[4], reverse=True)
    return markdown_table(header, lines)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else "one seed"


def draw(curves: Curves, path: Path) -> None:
    """Validation alpha and argmax agreement over trained tokens, a line an arm (the mean of its seeds)."""
    figure, panels = new_figure(11, 4.4, 2)
    shown = {arm: seeds for arm, seeds in curves.items() if len(next(iter(seeds.values()))) > 1}
    for axes, (key, title) in zip(panels, TITLES.items(), strict=True):
        for place, (arm, seeds) in enumerate(shown.items()):
            rows = [list(points) for points in zip(*seeds.values(), strict=False)]
            x = [np.mean([point["n_tokens"] for point in points]) for points in rows]
            y = [np.mean([point[key] for point in points]) for points in rows]
            style = "-" if place < 10 else "--"
            axes.plot(x, y, style, marker="o", markersize=3, linewidth=1.4, label=arm, color=f"C{place % 10}")
        axes.set(title=title, xlabel="trained tokens")
    panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    save_png(figure, path)
