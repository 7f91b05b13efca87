"""Objectives compared over training seeds: drafters of one objective and several seeds are one side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

from specalign.analysis.speeds import speeds_of
from specalign.errors import UserError
from specalign.metrics.comparisons import Cells, SeedComparison, compare_seeds, holm
from specalign.records import GenerationRecord, StepTrace
from specalign.results import ALONE, TARGET, Interval
from specalign.run_files import RunFiles

SIGNIFICANT = 0.05
NOTHING = SeedComparison(Interval(1.0), 1.0, None)

Drafter = tuple[int, str]
"""(Index of the run, name of the drafter there)."""
PromptCells = dict[str, tuple[float, float]]
"""Prompt -> (numerator, denominator)."""
Setting = tuple[float, int]
"""(Temperature, gamma)."""
Side = dict[Drafter, PromptCells]
"""An objective's drafters, one a training seed."""


@dataclass(frozen=True)
class Comparison:
    """Two objectives at one temperature and gamma, by one figure."""

    figure: str
    setting: Setting
    pair: tuple[str, str]
    n_seeds: tuple[int, int]
    found: SeedComparison
    p_value: float = 1.0
    """Holm-adjusted over all pairs, figures and settings of the comparison."""
    paired: bool = False
    """Whether seed i of both sides shares its start, order and data."""


def parse_groups(words: Sequence[str]) -> dict[str, list[str]]:
    """NAME=DRAFTER,DRAFTER,... -> NAME: drafters. Raises UserError for anything else."""
    groups = {}
    for word in words:
        name, equals, drafters = word.partition("=")
        members = [drafter for drafter in drafters.split(",") if drafter]
        if not (name and equals and members):
            raise UserError(f"--group takes NAME=DRAFTER,DRAFTER,..., not {word!r}")
        groups[name] = members
    return groups


def grouped(runs: Sequence[RunFiles], named: Mapping[str, Sequence[str]]) -> dict[str, list[Drafter]]:
    """Objective -> its drafters, one a training seed, over all runs.

    Without ``named`` groups the drafters' training methods are the groups. Raises UserError for an unknown
    drafter, for the same weights twice in a group, and where there are no two groups or no group has two seeds.
    """
    infos = {(place, info.name): info for place, run in enumerate(runs) for info in run.result.drafters}
    groups: dict[str, list[Drafter]] = defaultdict(list)
    for drafter, info in infos.items():
        names = [name for name, members in named.items() if drafter[1] in members]
        for name in names if named else [info.method] if info.method else []:
            groups[name].append(drafter)
    known = {name for _, name in infos}
    for member in (member for members in named.values() for member in members):
        if member not in known:
            raise UserError(
                f"no drafter {member!r} in these runs (choices: {', '.join(sorted(known)) or 'none'})"
            )
    for name, members in groups.items():
        hashes = [infos[member].training.get("weights_sha256") or member for member in members]
        if len(set(hashes)) < len(hashes):
            raise UserError(f"the drafters of {name!r} are not different seeds: two have the same weights")
    if len(groups) < 2 or max(map(len, groups.values())) < 2:
        found = ", ".join(f"{name} with {len(members)}" for name, members in groups.items())
        raise UserError(
            f"seeds needs two objectives, one of them with two seeds or more; found: {found or 'none'} "
            "(name them with --group NAME=DRAFTER,DRAFTER)"
        )
    return groups


def require_same_prompts(runs: Sequence[RunFiles]) -> None:
    """Raise UserError where the runs decoded other prompts, or count by other definitions."""
    for key in ("prompts_sha256", "dtype"):
        if len({str(run.result.provenance.get(key)) for run in runs}) > 1:
            raise UserError(f"these runs are not comparable: their {key} differ")
    if len({run.result.metrics_version for run in runs}) > 1:
        raise UserError("these runs are not comparable: their metric definitions differ")


def compare(runs: Sequence[RunFiles], groups: Mapping[str, Sequence[Drafter]]) -> list[Comparison]:
    """Every pair of objectives by speed, tau and alpha, at every temperature and gamma that both have.

    Seeds are paired where both sides were trained from the same ones: those share start, order and data.
    """
    found: list[Comparison] = []
    settings = sorted({(row.temperature, row.gamma) for run in runs for row in run.result.rows if row.gamma})
    for setting, (figure, cells_of) in product(settings, FIGURES.items()):
        sides = {
            name: {
                drafter: cells
                for drafter in members
                if (cells := cells_of(runs[drafter[0]], drafter[1], setting))
            }
            for name, members in groups.items()
        }
        for pair in combinations([name for name, seeds in sides.items() if seeds], 2):
            found += _pair(
                runs, (sides[pair[0]], sides[pair[1]]), Comparison(figure, setting, pair, (0, 0), NOTHING)
            )
    adjusted = holm({place: one.found.p_value for place, one in enumerate(found)})
    return [replace(one, p_value=adjusted[place]) for place, one in enumerate(found)]


def _pair(runs: Sequence[RunFiles], sides: tuple[Side, Side], blank: Comparison) -> list[Comparison]:
    prompts = sorted(set.intersection(*(set(cells) for side in sides for cells in side.values())))
    if not prompts:
        return []
    seeds = [_by_seed(runs, side) for side in sides]
    paired = None not in seeds and sorted(seeds[0] or {}) == sorted(seeds[1] or {}) and len(sides[0]) > 1
    ordered = [
        [side[own[seed]] for seed in sorted(own)] if paired and own else list(side.values())
        for side, own in zip(sides, seeds, strict=True)
    ]
    first, second = ([_cells(cells, prompts) for cells in side] for side in ordered)
    found = compare_seeds(second, first, paired=paired)
    return [replace(blank, n_seeds=(len(first), len(second)), found=found, paired=paired)]


def _by_seed(runs: Sequence[RunFiles], side: Side) -> dict[int, Drafter] | None:
    """Training seed -> drafter; None where a seed is not known or two drafters share one."""
    found: dict[int, Drafter] = {}
    for run, name in side:
        info = next(info for info in runs[run].result.drafters if info.name == name)
        seed = info.training.get("seed")
        if not isinstance(seed, int) or seed in found:
            return None
        found[seed] = run, name
    return found


def _cells(cells: Mapping[str, tuple[float, float]], prompts: Sequence[str]) -> Cells:
    return [cells[prompt][0] for prompt in prompts], [cells[prompt][1] for prompt in prompts]


def lines(found: Sequence[Comparison]) -> list[str]:
    """A line a comparison, and a warning where seeds are few."""
    shown: list[str] = []
    for one in found:
        title = f"{one.figure} at temperature {one.setting[0]:g}, gamma {one.setting[1]}:"
        shown += [] if title in shown else [title]
        names = " against ".join(
            f"{name} ({n} seed{'s' * (n > 1)})" for name, n in zip(one.pair, one.n_seeds, strict=True)
        )
        ratio, bound = one.found.ratio, one.found.detectable
        bounds = "" if ratio.low is None else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
        verdict = "" if one.p_value < SIGNIFICANT else "no significant difference; "
        unseen = "" if bound is None else f"; differences below {bound:.1%} would not show"
        shown.append(
            f"  {names}: {ratio.value:.3f}x{bounds} ({verdict}Holm-adjusted p = {one.p_value:.2g}{unseen})"
        )
    shown.append(f"All {len(found)} comparisons are corrected together (Holm).")
    fewest = min((min(one.n_seeds) for one in found), default=1)
    if fewest == 1:
        shown.append("With one seed on a side the variance between its seeds is not seen at all.")
    elif any(one.paired for one in found):
        shown.append(
            f"Seeds are paired; by signs alone {fewest} pairs of seeds give p >= {2 / 2**fewest:.2g}: the p-values "
            "rest on Student's t."
        )
    return shown


def _speed(run: RunFiles, drafter: str, setting: Setting) -> PromptCells:
    """Tokens and seconds at the plain target's lengths, in units of its seconds per token in the same run."""
    speeds = speeds_of(record for record in run.records if record.method in (TARGET, drafter))
    plain = speeds.cells((TARGET, setting[0], 0))
    unit = sum(seconds for _, seconds in plain.values()) / max(1.0, sum(tokens for tokens, _ in plain.values()))
    own = speeds.cells((drafter, *setting))
    return {prompt: (tokens, seconds / unit) for prompt, (tokens, seconds) in own.items()} if unit else {}


def _tau(run: RunFiles, drafter: str, setting: Setting) -> PromptCells:
    return _by_prompt(run, drafter, setting, lambda _, steps: (sum(steps.n_emitted), len(steps.n_emitted)))


def _alpha(run: RunFiles, drafter: str, setting: Setting) -> PromptCells:
    return _by_prompt(
        run, drafter, setting, lambda _, steps: (sum(map(sum, steps.overlap)), sum(steps.n_examined))
    )


def _by_prompt(
    run: RunFiles,
    drafter: str,
    setting: Setting,
    cell: Callable[[GenerationRecord, StepTrace], tuple[float, float]],
) -> PromptCells:
    total: PromptCells = {}
    for record in run.records:
        if (record.method, record.temperature, record.gamma) == (drafter, *setting) and record.rule != ALONE:
            if record.status != "ok" or record.steps is None:
                continue
            numerator, denominator = cell(record, record.steps)
            before = total.get(record.prompt_id, (0.0, 0.0))
            total[record.prompt_id] = before[0] + numerator, before[1] + denominator
    return total


FIGURES = {"speed": _speed, "tau": _tau, "alpha expected": _alpha}
