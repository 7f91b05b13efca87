"""What README promises: commands that parse, files that exist, numbers that come out of a result file."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from pathlib import Path

import pytest

from specalign.analysis.held_out import HeldOut, compare, mean, read_held_out
from specalign.analysis.study import read_study
from specalign.benchmarks.cli import COMMANDS, parse_run
from specalign.probes import CallProbe
from specalign.reports.rows import draft_length
from specalign.reports.study import answer
from specalign.reports.tables import bounds, escape
from specalign.results import SummaryRow
from specalign.run_files import read_result, read_run
from specalign.training.cli import COMMANDS as TRAIN_COMMANDS
from specalign.training.cli import configs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDY = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
BLOCKS = [text for language, text in FENCES if not language]
COMMAND_LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]


@pytest.mark.parametrize(
    "target", [line.removeprefix("make ") for line in COMMAND_LINES if line.startswith("make ")]
)
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_gate_calls_the_readmes_test_command() -> None:
    assert "make test" in COMMAND_LINES
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in COMMAND_LINES if line.startswith("specalign-train ")])
def test_training_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)[1:]
    assert configs(words[1:] if words[0] in TRAIN_COMMANDS else words)


@pytest.mark.parametrize("line", [line for line in COMMAND_LINES if line.startswith("specalign-bench ")])
def test_benchmark_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command, *rest = shlex.split(line)[1:]
    assert command in COMMANDS
    if command in ("run", "check"):
        assert parse_run(rest).drafter


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_the_tree_names_every_folder() -> None:
    tree = next(block for block in BLOCKS if block.startswith("specalign/"))
    named = {line.split()[0].strip("/") for line in tree.splitlines()}
    packages = {path.parent.name for path in (ROOT / "specalign").glob("*/__init__.py")}
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.toml"))}
    assert packages | top | {"tests", "docs", "reports"} <= named


DEMO = ROOT / "reports" / "2026-11-27_demo_cpu-2core"
PAIR = ROOT / "reports" / "2026-11-27_qwen-pair_cpu-2core"
HEADS = ROOT / "reports" / "2026-11-27_heads_cpu-2core"
STARTS = ROOT / "reports" / "2026-11-28_head-starts_cpu-2core"
ROWS = ROOT / "reports" / "2026-11-28_heads-rows_cpu-2core"
PAIR_SAMPLED = ROOT / "reports" / "2026-11-28_qwen-pair-t1_cpu-2core"
HEADS_LONG = ROOT / "reports" / "2026-11-27_heads-long_cpu-2core"
SEEDS = ROOT / "reports" / "2026-11-25_study-long-seeds_cpu-2core"


def test_the_table_comes_out_of_the_published_result() -> None:
    shown = README.split("<!-- demo table: begin -->")[1].split("<!-- demo table: end -->")[0]
    rows = [row for row in read_result(DEMO).rows if row.kind != "target"]
    _header, _rule, *lines = shown.strip().splitlines()
    assert lines == [_line(row) for row in sorted(rows, key=_speed, reverse=True)]


def test_what_the_pair_came_to_is_that_of_its_files() -> None:
    """README's and the study's figures of Qwen2.5-Coder, and the table of what distillation adds."""
    found = read_held_out(PAIR)
    shown = _shown("pair")
    assert shown == {arm: _figures(found, arm, "untrained") for arm in shown}
    stock = next(row for row in read_result(PAIR).rows if (row.method, row.gamma) == ("untrained-0", 3))
    assert stock.speedup
    assert f"{stock.speedup.value:.2f}x {bounds(stock.speedup_joint)} at γ = 3" in STUDY
    assert f"{stock.speedup.value:.2f} times as fast" in README
    assert f"α of {mean(found['untrained']['seed-0'], 'alpha'):.3f}" in README.replace("\n  ", " ")


def _shown(table: str) -> dict[str, list[str]]:
    """Cells of a table of held-out figures in the study, by arm."""
    lines = STUDY.split(f"<!-- {table} held out: begin -->")[1].split(f"<!-- {table} held out: end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.strip().splitlines()[2:]]
    found = {arm: cells for arm, *cells in rows}
    assert len(found) == len(rows) > 0
    return found


def _figures(found: HeldOut, arm: str, baseline: str) -> list[str]:
    return [cell for figure in ("alpha", "agreement") for cell in _held_out(found, arm, figure, baseline)]


def _held_out(found: HeldOut, arm: str, figure: str, baseline: str) -> list[str]:
    """The mean over an arm's seeds, and the difference from the baseline's."""
    value = f"{sum(mean(scores, figure) for scores in found[arm].values()) / len(found[arm]):.3f}"
    if arm == baseline:
        return [value, "–"]
    over = compare(found, arm, baseline, figure).difference
    return [value, f"{over.value:+.3f} [{over.low:+.3f}, {over.high:+.3f}]"]


def test_the_starts_table_and_what_decoding_adds_are_those_of_their_files() -> None:
    found = read_held_out(STARTS)
    arms = [arm for arm, seeds in found.items() if len(seeds) == 3]
    assert _shown("starts") == {arm: ["3", *_figures(found, arm, "head_jsd")] for arm in arms}
    rows = {(row.method, row.temperature): row for row in read_result(ROWS).rows}
    for temperature in (0.0, 1.0):
        row = rows["head_jsd", temperature]
        assert f"{_speed(row):.2f}x {bounds(row.speedup_joint)}" in STUDY
    ours, theirs = rows["head_jsd_3072", 0.0].c, rows["slice_jsd", 0.0].c
    assert ours
    assert theirs
    assert f"{ours / theirs:.2f} of the slice's" in STUDY


def test_what_the_pair_came_to_by_sampling_is_that_of_its_run() -> None:
    for row in read_result(PAIR_SAMPLED).rows:
        assert row.gamma != 3 or f"{_speed(row):.2f}x {bounds(row.speedup_joint)}" in STUDY


def test_the_heads_table_and_speeds_are_those_of_their_files() -> None:
    """Of every arm the means over its seeds, and of the compiled run the rows that the study names."""
    found = read_held_out(HEADS)
    expected = {arm: [str(len(seeds)), *_figures(found, arm, "head_jsd")] for arm, seeds in found.items()}
    assert _shown("heads") == expected
    ours, theirs = (_held_out(found, arm, "alpha", "head_jsd")[0] for arm in ("head_jsd", "slice_jsd"))
    assert f"a head reaches α = {ours} on test prompts, a two-layer slice\n  {theirs}." in README
    rows = {(row.method, row.temperature): row for row in read_result(HEADS).rows if row.gamma == 1}
    for method in ("head_rank_anchored-0", "slice_jsd-0"):
        for temperature in (0.0, 1.0):
            row = rows[method, temperature]
            assert f"{_speed(row):.2f}x {bounds(row.speedup_joint)}" in STUDY


def test_the_long_trained_head_is_as_fast_as_its_run_has_it() -> None:
    rows = [row for row in read_result(HEADS_LONG).rows if row.kind != "target"]
    cold, warm = sorted(rows, key=lambda row: row.temperature)
    both = [f"{_speed(row):.2f}x {bounds(row.speedup_joint)}" for row in (cold, warm)]
    assert f"{both[0]} at temperature 0 and {both[1]} at 1" in STUDY
    assert f"({_speed(cold):.2f}x\n  and {_speed(warm):.2f}x)" in README


def test_the_times_of_compiled_calls_are_those_of_the_runs_that_are_named() -> None:
    page = " ".join((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").split())
    before, after = _target_ms("2026-11-27_parallel_cpu-2core"), _target_ms("2026-11-27_heads_cpu-2core")
    assert f"two positions took {before[2]:.1f} ms where one took {before[1]:.1f}" in page
    assert f"{after[2]:.1f} ms for two and {after[4]:.1f} for four, beside {after[1]:.1f} for one" in page
    again = _target_ms("2026-11-28_parallel_cpu-2core")
    assert f"Five positions still took {before[5]:.1f} ms in the first" in page
    assert f"five take {again[5]:.1f} ms beside {again[1]:.1f} for one" in page
    long = _target_ms("2026-11-27_heads-long_cpu-2core")
    assert f"{long[1]:.1f} ms there and {after[1]:.1f} in the run before" in " ".join(STUDY.split())


def test_where_parallel_drafts_break_even_is_that_of_their_run() -> None:
    rows = read_result(ROOT / "reports" / "2026-11-28_parallel_cpu-2core").rows
    needed = {
        (row.method, row.temperature): f"{row.break_even_alpha:.2f}" for row in rows if row.break_even_alpha
    }
    greedy, sampled = ([needed[method, t] for method in ("jsd", "sequential")] for t in (0.0, 1.0))
    told = f"α = {greedy[0]} instead of {greedy[1]} (temperature 0; {sampled[0]} instead of {sampled[1]} at 1;"
    assert told in " ".join(STUDY.split())


def test_the_acceptance_of_both_engines_comes_out_of_its_file() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (name,) = re.findall(r"\]\(\.\./(benchmarks/results/[^)]*_served_[^)]*)\)", text)
    drafters = json.loads((ROOT / name).read_text(encoding="utf-8"))["drafters"]
    assert len(drafters) == 3
    for row in drafters.values():
        ours, theirs = row["alpha"]
        assert f"| {ours:.4f} | {theirs:.4f} | {row['outputs_equal']} of 12 |" in text
        assert row["own"] == row["vllm"]


def test_the_sampled_acceptance_of_both_engines_comes_out_of_its_file() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (name,) = re.findall(r"\]\(\.\./(benchmarks/results/[^)]*_served-sampled_[^)]*)\)", text)
    drafters = json.loads((ROOT / name).read_text(encoding="utf-8"))["drafters"]
    for row in drafters.values():
        (ours, theirs), (low, high) = row["alpha"], row["difference_95"]
        assert f"| {ours:.4f} | {theirs:.4f} | {theirs - ours:+.4f} [{low:+.4f}, {high:+.4f}] |" in text
        assert low < 0 < high


def _target_ms(run: str) -> dict[int, float]:
    """Median milliseconds of a call of the target on each number of positions."""
    found: dict[int, list[float]] = {}
    for probe in read_run(ROOT / "reports" / run).probes:
        if isinstance(probe, CallProbe) and probe.method == "target":
            found.setdefault(probe.n_tokens, []).extend(probe.seconds)
    return {n: 1000 * statistics.median(seconds) for n, seconds in found.items()}


def test_the_second_turn_is_as_fast_as_its_report_has_it() -> None:
    page = (ROOT / "reports" / "2026-11-27_spec-bench-turns_cpu-2core" / "report.md").read_text(
        encoding="utf-8"
    )
    (line,) = (
        line for line in page.splitlines() if line.startswith("| prompt\\_lookup (γ = 5) | speed-up | 1.10x")
    )
    first, second = (cell.split()[0] for cell in line.split("|")[3:5])
    text = (ROOT / "docs" / "decoding.md").read_text(encoding="utf-8")
    assert f"first turn {first} as fast" in text
    assert f"the first answer, {second}." in text


@pytest.mark.parametrize("kind", ["summaries", "chat", "code"])
def test_the_table_of_copying_is_that_of_its_runs(kind: str) -> None:
    name = f"2026-11-{28 if kind == 'summaries' else 27}_copying-{kind}_cpu-2core"
    rows = {row.method: row for row in read_result(ROOT / "reports" / name).rows}
    methods = ("prompt_lookup", "suffix_lookup", "hybrid", "head")
    cells = [f"{_speed(rows[method]):.2f}x {bounds(rows[method].speedup_joint)}" for method in methods]
    text = (ROOT / "docs" / "decoding.md").read_text(encoding="utf-8")
    assert f"| [{kind}](../reports/{name}/report.md) | {' | '.join(cells)} |" in text.splitlines()


def test_the_demos_best_is_named_first() -> None:
    best = max((row for row in read_result(DEMO).rows if row.kind != "target"), key=_speed)
    assert f"{_speed(best):.2f} times the plain target's speed" in README


def _speed(row: SummaryRow) -> float:
    assert row.speedup
    return row.speedup.value


def _line(row: SummaryRow) -> str:
    assert row.speedup
    assert row.alpha_counted
    needed = "–" if row.c is None or row.break_even_alpha is None else f"{row.break_even_alpha:.2f}"
    speed = escape(f"{row.speedup.value:.2f}x {bounds(row.speedup_joint)}")
    return (
        f"| {escape(row.method)} | {draft_length(row)} | {speed} | {row.alpha_counted.value:.2f} / {needed} |"
    )


def test_readmes_answer_is_that_of_the_study() -> None:
    """Means over three seeds, of both survivors, as the study's page has them."""
    page = (SEEDS / "answer.md").read_text(encoding="utf-8")
    for arm, column, value in (
        ("jsd", 4, "0.374"),
        ("rank\\_anchored", 4, "0.360"),
        ("rank\\_anchored", 5, "0.337"),
        ("jsd", 5, "0.328"),
    ):
        training = page.split("## Training")[1].splitlines()
        (line,) = (line for line in training if line.startswith(f"| {arm} |"))
        assert line.split("|")[column + 1].split()[0] == value
        assert value in README


@pytest.mark.parametrize(
    ("kind", "folder"),
    [("study", "2026-11-24_study_cpu-2core"), ("long study", "2026-11-25_study-long-seeds_cpu-2core")],
)
def test_the_studys_answer_comes_out_of_its_page(kind: str, folder: str) -> None:
    page = (ROOT / "reports" / folder / "answer.md").read_text(encoding="utf-8").splitlines()
    shown = STUDY.split(f"<!-- {kind}: begin -->")[1].split(f"<!-- {kind}: end -->")[0].splitlines()
    lines = [line for line in shown if line]
    assert lines
    assert not [line for line in lines if line not in page]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "baseline"),
    [("2026-11-24_study_cpu-2core", "forward_kl"), ("2026-11-25_study-long-seeds_cpu-2core", "jsd")],
)
def test_the_studys_page_comes_out_of_its_records(run: str, baseline: str) -> None:
    folder = ROOT / "reports" / run
    page = (folder / "answer.md").read_text(encoding="utf-8").splitlines()
    assert [line for text in answer(read_study(folder, baseline)) for line in text.split("\n")] == page


def test_the_quantisation_table_comes_out_of_its_file() -> None:
    text = (ROOT / "docs" / "students.md").read_text(encoding="utf-8")
    (name,) = re.findall(r"\]\(\.\./(benchmarks/results/[^)]*quantised[^)]*)\)", text)
    kinds = json.loads((ROOT / name).read_text(encoding="utf-8"))["kinds"]
    for kind, label in (("none", "float32"), ("4bit", "NF4"), ("8bit", "int8")):
        measured = kinds[kind]
        times = [f"{1000 * measured['median_s'][q]:.0f}" for q in "1358"]
        rest = [f"{measured['ratio_to_one']['5']:.2f}", f"{measured['weight_bytes'] / 1e6:.0f}"]
        cells = [label, *times, *rest, f"{measured['overlap_with_float32']:.2f}"]
        assert f"| {' | '.join(cells)} |" in text


LONG = ROOT / "reports" / "2026-11-24_study-long_cpu-2core"


@pytest.mark.parametrize(
    ("shown", "method", "curve", "place"),
    [
        ("rank loss, 240,000 tokens", "rank_anchored_long", "rank_anchored_long", -1),
        ("JSD, 240,000 tokens", "jsd_long", "jsd_long", -1),
        ("JSD, 24,000 tokens", "jsd", "jsd", -1),
        ("the aligned start", "aligned", "jsd_long", 0),
    ],
)
def test_the_long_studys_rows_are_its_files(shown: str, method: str, curve: str, place: int) -> None:
    held_out = json.loads((LONG / "training.json").read_text(encoding="utf-8"))[curve]["seed-0"][place]
    rows = read_result(LONG).rows
    (row,) = (row for row in rows if (row.method, row.temperature) == (method, 0.0))
    speeds = [
        f"{speed.value:.2f}x [{speed.low:.2f}, {speed.high:.2f}]"
        for speed in (row.decode_speedup, row.speedup)
        if speed
    ]
    cells = [shown, f"{held_out['agreement']:.3f}", f"{held_out['alpha']:.3f}", *speeds]
    assert f"| {' | '.join(cells)} |" in STUDY.splitlines()


def test_the_losses_table_comes_out_of_its_file() -> None:
    text = (ROOT / "docs" / "objectives_cost.md").read_text(encoding="utf-8")
    (name,) = re.findall(r"\]\(\.\./(benchmarks/results/[^)]*losses_cpu[^)]*)\)", text)
    cases = json.loads((ROOT / name).read_text(encoding="utf-8"))["benchmarks"]
    assert len(cases) == 16
    for case in cases:
        label, found = re.findall(r"\[(.*)\]", case["name"])[0], case["extra_info"]
        gigabytes = {key: f"{found[key] / 1e9:.2f}" for key in found if key.endswith("peak_bytes")}
        if "trl" in found:
            ours = f"(ours {found['wall_s']:.1f} s, {gigabytes['peak_bytes']} GB)"
            assert f"{found['trl_wall_s']:.1f} s and {gigabytes['trl_peak_bytes']} GB {ours}" in " ".join(
                text.split()
            )
            continue
        error = f"{found['gradient_error']:.0e}"
        if "gradient_error_to_float64" in found:
            exact = (found["gradient_error_to_float64"], found["whole_gradient_error_to_float64"])
            error += "; " + " and ".join(f"{one:.0e}" for one in exact)
        cells = [label, gigabytes["peak_bytes"], gigabytes["whole_peak_bytes"]]
        cells += [f"{found['wall_s']:.1f}", f"{found['time_ratio']:.2f}", error]
        assert f"| {' | '.join(cells)} |" in text
