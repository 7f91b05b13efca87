"""The section of a study's page on test prompts, which nothing had looked at before."""

from __future__ import annotations

import numpy as np

from specalign.analysis.held_out import FIGURES, HeldOut, best, compare, mean
from specalign.reports.tables import interval, markdown_table

NAMES = {"alpha": "α at temperature 1", "agreement": "argmax agreement", "tau": "τ"}


def held_out_lines(found: HeldOut) -> list[str]:
    """A table of objectives, each against the best by each figure; nothing where no run had test prompts."""
    if not found:
        return []
    scores = next(iter(next(iter(found.values())).values()))
    n_seeds = max(map(len, found.values()))
    leaders = {figure: best(found, figure) for figure in FIGURES}
    header = ["objective", "seeds"]
    for figure, leader in leaders.items():
        header += [NAMES[figure], f"less {leader}'s"]
    lines = [_line(found, arm, leaders) for arm in found]
    return [
        "",
        "## Test prompts",
        "",
        f"Along the teacher's own responses to {len(scores)} test prompts, which chose nothing (`held_out.json`; τ is "
        f"expected at γ = {scores[0].gamma}). Differences have 95 % intervals over prompts and pairs of seeds (runs of "
        "one seed share start, order and tokens); p is one-sided, over the ways to swap the pairs: "
        f"{2.0**-n_seeds:.3g} at best.",
        "",
        *markdown_table(header, lines),
    ]


def _line(found: HeldOut, arm: str, leaders: dict[str, str]) -> list[str]:
    cells = [arm, str(len(found[arm]))]
    for figure, leader in leaders.items():
        cells.append(f"{np.mean([mean(scores, figure) for scores in found[arm].values()]):.3f}")
        if arm == leader or not found[arm].keys() & found[leader].keys():
            cells.append("–")
            continue
        against = compare(found, arm, leader, figure)
        cells.append(f"{interval(against.difference, 3)} (p = {against.p_value:.2g})")
    return cells
