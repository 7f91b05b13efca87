"""How often the statistics are right: coverage, family-wise error and power on simulated runs.

    python benchmarks/simulate_statistics.py [--runs 1000] [--seed 0] [--parts joint power]
        [--output benchmarks/results/DATE_statistics.json]

Simulated runs have the dispersion of published ones. Coverage: prompts are drawn with replacement from a published run
and their seconds multiplied by 2 % of clock noise; the truth is the published figure. Joint tests: seconds outside
decoding and per decoded token are lognormal with the covariance over prompts that a published run shows, output lengths
have its quantiles, and every row is rescaled so that its true speed-up is 1, or 2 where it is planted. In the A/A runs
the rows of a temperature are shuffled anew for each prompt besides, so that nothing but chance sets them
apart. Power: the difference that one simulated run says it would show is planted in another. It takes several minutes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import norm, rankdata

from specalign.analysis.families import against_plain
from specalign.analysis.speeds import Group, Speeds, plain_of, read_speeds
from specalign.files import write_json
from specalign.metrics.comparisons import LEVEL, joint_test, minimum_detectable_difference, reach_of
from specalign.metrics.statistics import Array, Estimate, Times, log_ratio
from specalign.run_files import RECORDS_FILE, read_records

REPORTS = Path(__file__).parent.parent / "reports"
DEMO, STUDY, LONG = (f"2026-11-24_{name}_cpu-2core" for name in ("demo-packed", "study", "study-long"))
COVERED = (LONG, "2026-11-25_study-long-seeds_cpu-2core", "2026-11-25_same-against-itself_cpu-2core")
SIZES = (6, 12, 24, 40)
CLOCK = 0.02
Setting = tuple[str, int, float | None]
SETTINGS: tuple[Setting, ...] = (
    (DEMO, 6, None),
    (STUDY, 12, 0.0),
    (STUDY, 12, 1.0),
    (LONG, 40, None),
)
"""Runs whose rows are simulated, the prompts of a simulated run, the temperature of the rows (None: all of them)."""
TRUTH_PROMPTS = 20_000


def main() -> None:
    """Run all simulations and write their result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="simulated runs a figure")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is simulated")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    parts = " ".join(args.parts)
    command = f"python benchmarks/simulate_statistics.py --runs {args.runs} --seed {args.seed} --parts {parts}"
    found: dict[str, object] = {"command": command, "runs": args.runs, "seed": args.seed}
    for part in args.parts:
        found[part] = PARTS[part](args.runs, args.seed)
    if args.output:
        write_json(args.output, found)
    print(found)


@dataclass(frozen=True)
class Prompts:
    """What a published run measured of each prompt at one temperature: the plain target's times and a row's."""

    plain: Array
    """[prompts, 3]: seconds outside decoding, decode seconds, tokens."""
    ours: Array
    counts: Array
    """[prompts, 5]: accepted, examined, overlap, emitted, steps."""


Figure = Callable[[Array, Array, Array], Estimate | None]
FIGURES: dict[str, Figure] = {
    "speed-up": lambda plain, ours, _: _speedup(plain, ours),
    "whole speed-up": lambda plain, ours, _: _minus(_times(plain).whole, _times(ours).whole),
    "tokens/s": lambda _, ours, __: log_ratio(ours[:, 2], ours[:, 0] + ours[:, 1]),
    "alpha counted": lambda _, __, counts: log_ratio(counts[:, 0], counts[:, 1]),
    "alpha expected": lambda _, __, counts: log_ratio(counts[:, 2], counts[:, 1]),
    "tau": lambda _, __, counts: log_ratio(counts[:, 3], counts[:, 4]),
}


def coverage(n_runs: int, seed: int) -> list[dict[str, object]]:
    """Share of 95 % intervals that hold the published figure, pooled over rows and runs."""
    generator = np.random.default_rng([seed, 0])
    published = {t: [p for run in COVERED for p in _published(REPORTS / run, t)] for t in (0.0, 1.0)}
    found: list[dict[str, object]] = []
    for temperature, rows in published.items():
        for n in SIZES:
            hits: dict[str, list[bool]] = {name: [] for name in FIGURES}
            for row in rows:
                for _ in range(max(1, n_runs // 10)):
                    for name, hit in _covered(row, n, generator):
                        hits[name].append(hit)
            shares = {name: float(np.mean(own)) for name, own in hits.items()}
            found.append({"temperature": temperature, "prompts": n, "intervals": len(hits["tau"]), **shares})
    return found


def _covered(row: Prompts, n: int, generator: np.random.Generator) -> Iterator[tuple[str, bool]]:
    pick = generator.integers(len(row.plain), size=n)
    plain, ours = (table[pick] * _clock(n, generator) for table in (row.plain, row.ours))
    for name, figure in FIGURES.items():
        truth, estimate = figure(row.plain, row.ours, row.counts), figure(plain, ours, row.counts[pick])
        if truth is None or estimate is None:
            continue
        interval = estimate.share() if name.startswith("alpha") else estimate.interval()
        if interval.low is not None and interval.high is not None:
            yield name, interval.low <= math.exp(truth.log) <= interval.high


def _clock(n: int, generator: np.random.Generator) -> Array:
    """Noise on seconds, none on tokens."""
    noise = generator.lognormal(0, CLOCK, n)
    return np.stack([noise, noise, np.ones(n)], axis=1)


def _published(run: Path, temperature: float) -> Iterator[Prompts]:
    """Every row of the temperature that accepted anything."""
    speeds, counts = read_speeds(run), _counts(run)
    for group in speeds.drafted:
        if group[1] == temperature and counts[group]:
            prompts = speeds.prompts(group, plain_of(group))
            plain, ours = (_table(speeds, one, prompts) for one in (plain_of(group), group))
            table = np.array([counts[group][prompt] for prompt in prompts])
            if table[:, 0].sum():
                yield Prompts(plain, ours, table)


def _counts(run: Path) -> dict[Group, dict[str, Array]]:
    found: dict[Group, dict[str, Array]] = {}
    for record in read_records(run / RECORDS_FILE):
        if record.status == "ok" and record.steps and record.gamma:
            s = record.steps
            own = [
                sum(s.n_accepted),
                sum(s.n_examined),
                sum(map(sum, s.overlap)),
                sum(s.n_emitted),
                len(s.n_emitted),
            ]
            prompts = found.setdefault((record.method, record.temperature, record.gamma), {})
            prompts[record.prompt_id] = prompts.get(record.prompt_id, np.zeros(5)) + np.array(own, dtype=float)
    return found


def _table(speeds: Speeds, group: Group, prompts: list[str]) -> Array:
    total = {prompt: np.zeros(3) for prompt in prompts}
    for (prompt, _), values in speeds.generations[group].items():
        if prompt in total:
            total[prompt] += np.array(values, dtype=float)
    return np.array(list(total.values()))


class Simulator:
    """Runs with the rows of a published one, all of true speed-up 1."""

    def __init__(self, run: str, temperature: float | None = None) -> None:
        speeds = read_speeds(REPORTS / run)
        every = [found.first for found in against_plain(speeds).comparisons]
        self.rows = [row for row in every if temperature in (None, row[1])]
        groups = [*self.rows, *dict.fromkeys(map(plain_of, self.rows))]
        prompts = speeds.prompts(*groups)
        tables = {group: _table(speeds, group, prompts) for group in groups}
        self.lengths = {group: np.sort(table[:, 2]) for group, table in tables.items()}
        self.logs = {
            group: np.log(np.stack([table[:, 0], table[:, 1] / table[:, 2]], axis=1))
            for group, table in tables.items()
        }
        self.scores = {
            group: norm.ppf((rankdata(table[:, 2]) - 0.5) / len(prompts)) for group, table in tables.items()
        }
        self.scale = dict.fromkeys(groups, 0.0)
        truth = self.draw(TRUTH_PROMPTS, np.random.default_rng(0))
        for row in self.rows:
            estimate = _speedup(truth[plain_of(row)], truth[row])
            self.scale[row] = estimate.log if estimate else 0.0

    def draw(self, n: int, generator: np.random.Generator) -> dict[Group, Array]:
        """Group -> [prompts, 3]: what n new prompts take."""
        n_known = len(next(iter(self.scores.values())))
        mixing = generator.normal(size=(n, n_known)) / math.sqrt(n_known - 1)
        found = {}
        for group, logs in self.logs.items():
            mean = logs.mean(axis=0)
            outside, pace = np.exp(mean + mixing @ (logs - mean) + self.scale[group]).T
            score = mixing @ (self.scores[group] - self.scores[group].mean())
            known = self.lengths[group]
            tokens = np.interp(ndtr(score) * (len(known) - 1), np.arange(len(known)), known)
            found[group] = np.stack([outside, pace * tokens, tokens], axis=1)
        return found

    def seconds(self, drawn: dict[Group, Array]) -> tuple[Array, Array]:
        """[prompts, rows] of the plain target and of the rows, at the plain target's lengths."""
        plain = [drawn[plain_of(row)] for row in self.rows]
        sides = (plain, [drawn[row] for row in self.rows])
        theirs, ours = (
            np.stack(
                [_times(own).seconds_at(target[:, 2]) for own, target in zip(side, plain, strict=True)], axis=1
            )
            for side in sides
        )
        return theirs, ours

    def shuffled(self, drawn: dict[Group, Array], generator: np.random.Generator) -> dict[Group, Array]:
        """Every row and the plain target of a temperature is any of them, prompt by prompt."""
        found = {}
        for temperature in {row[1] for row in self.rows}:
            groups = [group for group in drawn if group[1] == temperature]
            table = np.stack([drawn[group] for group in groups])
            order = np.argsort(generator.random(table.shape[:2]), axis=0)
            for place, group in enumerate(groups):
                found[group] = table[order[place], np.arange(table.shape[1])]
        return found

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Rows of one temperature against each other."""
        return [(i, j) for i, j in combinations(range(len(self.rows)), 2) if self.rows[i][1] == self.rows[j][1]]


def joint(setting: Setting, n_runs: int, seed: int) -> dict[str, object]:
    """How often nothing is called something, and how often a planted 2x is found in every pair that it is in."""
    run_name, n, temperature = setting
    simulator, generator = Simulator(run_name, temperature), np.random.default_rng([seed, 1])
    pairs = np.array(simulator.pairs)
    planted = (pairs == 0).any(axis=1)
    use, pair, among, found, seen, same = [], [], [], [], [], []
    for run in range(n_runs):
        drawn = simulator.draw(n, generator)
        same.append(_differ(simulator.seconds(simulator.shuffled(drawn, generator))[1], pairs).any())
        plain, ours = simulator.seconds(drawn)
        faster = plain.sum(axis=0) > ours.sum(axis=0)
        use.append((faster & (joint_test(plain, ours).p_values < LEVEL)).any())
        pair.append(_differ(ours, pairs).any())
        if run < n_runs // 5:
            ours[:, 0] /= 2
            differs = _differ(ours, pairs)
            found.append(joint_test(plain, ours).p_values[0] < LEVEL)
            seen.append(differs[planted].mean())
            among.append(differs[~planted].any())
    return {
        "run": run_name, "prompts": n, "temperature": temperature, "rows": len(simulator.rows), "pairs": len(pairs),
        "use_best_of_equal_rows": float(np.mean(use)), "any_false_pair_of_the_same": float(np.mean(same)),
        "any_false_pair_of_equal_means": float(np.mean(pair)),
        "planted_2x_used": float(np.mean(found)), "planted_2x_share_of_its_pairs_found": float(np.mean(seen)),
        "any_false_pair_beside_planted": float(np.mean(among)),
    }  # fmt: skip


def power(setting: Setting, n_runs: int, seed: int) -> dict[str, object]:
    """How often a run finds what another one of as many prompts said would show, row by row in turn."""
    run_name, n, temperature = setting
    simulator, generator = Simulator(run_name, temperature), np.random.default_rng([seed, 2])
    found: list[list[bool]] = [[] for _ in simulator.rows]
    for run in range(n_runs):
        row = run % len(found)
        stated = _stated(*simulator.seconds(simulator.draw(n, generator)))[row]
        plain, ours = simulator.seconds(simulator.draw(n, generator))
        ours[:, row] /= 1 + stated
        found[row].append(bool(joint_test(plain, ours).p_values[row] < LEVEL))
    return {
        "run": run_name, "prompts": n, "temperature": temperature,
        "of_each_row": [round(float(np.mean(own)), 3) for own in found],
        "mean": float(np.mean([one for own in found for one in own])),
    }  # fmt: skip


def _stated(plain: Array, ours: Array) -> list[float]:
    """The smallest difference from the plain target that a run says it would show, of each row."""
    estimates = [log_ratio(*pair) for pair in zip(plain.T, ours.T, strict=True)]
    known = [found for found in estimates if found]
    reach = reach_of(np.stack([found.influence for found in known], axis=1), joint_test(plain, ours).critical)
    return [minimum_detectable_difference(found, reach) or 0.0 for found in known]


PARTS: dict[str, Callable[[int, int], list[dict[str, object]]]] = {
    "coverage": coverage,
    "joint": lambda n_runs, seed: [joint(setting, n_runs, seed) for setting in SETTINGS],
    "power": lambda n_runs, seed: [power(setting, n_runs, seed) for setting in SETTINGS],
}


def _differ(ours: Array, pairs: Array) -> NDArray[np.bool_]:
    return joint_test(ours[:, pairs[:, 0]], ours[:, pairs[:, 1]]).p_values < LEVEL


def _times(table: Array) -> Times:
    return Times(table[:, 0], table[:, 1], table[:, 2])


def _speedup(plain: Array, ours: Array) -> Estimate | None:
    return log_ratio(*(_times(table).seconds_at(plain[:, 2]) for table in (plain, ours)))


def _minus(one: Estimate | None, other: Estimate | None) -> Estimate | None:
    return one - other if one and other else None


if __name__ == "__main__":
    main()
