"""What the report promises: an answer first, the same bytes again, nothing that strings can break."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from specalign.errors import UserError
from specalign.reports import build_report, compare_runs, result_table
from specalign.reports.export import write_csv, write_svg
from specalign.reports.tables import escape
from specalign.results import Check, Interval, ModelInfo, SummaryRow
from specalign.run_files import RECORDS_FILE, read_records, read_result, record_line
from specalign.text import plain

ROOT = Path(__file__).parents[2]
HOSTILE = "a|b\n# c `d` <script>alert(1)</script> &lt;i&gt; ![x](y) **z** $k$ ~~s~~ \x1b[2J\u202eexe"


def _cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_rebuilding_gives_the_same_bytes(make_run: Callable[..., Path]) -> None:
    run = make_run()
    build_report(run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    build_report(run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert {"report.md", "report.html", "speedup.png", "acceptance.png", "time.png"} <= set(before)


def test_the_published_report_rebuilds_from_its_records(tmp_path: Path) -> None:
    published = ROOT / "reports" / "2026-11-24_demo-packed_cpu-2core"
    for path in published.glob("*.json*"):
        shutil.copy(path, tmp_path)
    build_report(tmp_path)
    for name in ("report.md", "report.html"):
        assert (tmp_path / name).read_bytes() == (published / name).read_bytes(), name


def test_the_first_ten_lines_hold_answer_interval_hardware_and_trust(make_run: Callable[..., Path]) -> None:
    top = "\n".join(build_report(make_run()).read_text(encoding="utf-8").splitlines()[:10])
    for promise in ("γ = 3", "x \\[", "AMD EPYC", "1 of 1 checks passed"):
        assert promise in top


def test_says_plainly_that_nothing_is_faster(make_run: Callable[..., Path]) -> None:
    top = "\n".join(build_report(make_run()).read_text(encoding="utf-8").splitlines()[:6])
    assert top.count("nothing is faster than the plain target on this machine") == 2
    assert "break-even is 0.57" in top


def test_what_drafts_of_no_one_length_cost_is_not_said(make_run: Callable[..., Path]) -> None:
    rows = [replace(row, c=None, break_even_alpha=None) for row in read_result(make_run()).rows]
    top = build_report(make_run("adaptive", rows=rows)).read_text(encoding="utf-8")
    assert "Its drafts are accepted at a rate of" in top
    assert "no acceptance rate would do" not in top


def test_few_prompts_are_said_to_show_nothing(make_run: Callable[..., Path]) -> None:
    bare = [
        replace(row, speedup_joint=row.speedup and Interval(row.speedup.value))
        for row in read_result(make_run()).rows
    ]
    top = build_report(make_run("bare", rows=bare)).read_text(encoding="utf-8").splitlines()[2]
    assert "keep the plain target" in top
    assert "4 prompts cannot show any difference, however large: no p-value below 0.17 is possible" in top


def test_recommends_the_fastest_row_whose_interval_lies_above_one(make_run: Callable[..., Path]) -> None:
    rows = read_result(make_run()).rows
    fast = [_scaled(row, 2.0) if row.method == "gkd" else row for row in rows]
    top = build_report(make_run("fast", rows=fast)).read_text(encoding="utf-8").splitlines()[2]
    best = next(row for row in fast if row.method == "gkd" and row.temperature == 0)
    assert best.speedup is not None
    assert "use gkd with γ = 3" in top
    assert f"{best.speedup.value:.2f}x" in top


def test_a_failed_check_comes_before_the_answer(make_run: Callable[..., Path]) -> None:
    text = build_report(make_run(checks=[Check("greedy output", False, "3 leave it")])).read_text(
        encoding="utf-8"
    )
    assert text.index("greedy output: 3 leave it") < text.index("Temperature 0")


def test_tables_keep_their_columns_whatever_the_names_hold(make_run: Callable[..., Path]) -> None:
    rows = [
        replace(row, method=HOSTILE) if row.method == "gkd" else row for row in read_result(make_run()).rows
    ]
    run = make_run(
        "hostile", rows=rows, suite=HOSTILE, checks=[Check(HOSTILE, True, HOSTILE)],
        drafters=[ModelInfo(HOSTILE, HOSTILE, 1, 1, 1, HOSTILE)], target=ModelInfo(HOSTILE, HOSTILE, 1, 1, 1),
        command=["specalign-bench", f"```\n# out\n{HOSTILE}"],
    )  # fmt: skip
    text = build_report(run).read_text(encoding="utf-8")
    write_svg(run)
    for name in ("report.md", "report.html", "speedup.svg"):
        written = (run / name).read_text(encoding="utf-8")
        assert plain(written) == written
    head, fenced, tail = re.split(r"^````+$", text, flags=re.MULTILINE)
    assert "# out" in fenced
    assert "<script" not in head + tail
    assert [line for line in head.splitlines() if line.startswith("# ")] == [head.splitlines()[0]]
    for table in re.findall(r"(?:^\|.*\n)+", head, flags=re.MULTILINE):
        assert len({_cells(line) for line in table.splitlines()}) == 1


def test_no_cell_of_a_table_is_a_formula(make_run: Callable[..., Path]) -> None:
    run = make_run()
    records = list(read_records(run / RECORDS_FILE))
    texts = ["=1+1", "+1+1", "-1", "@x", " =1", "a=b", "\x1b[2J"]
    lines = [record_line(replace(record, text=text)) for record, text in zip(records, texts, strict=False)]
    (run / RECORDS_FILE).write_text("".join(lines), encoding="utf-8")
    written = pd.read_csv(write_csv(run), dtype=str)["text"].tolist()
    assert written == ["'=1+1", "'+1+1", "-1", "'@x", "' =1", "a=b", "\\x1b[2J"][: len(written)]
    assert len(written) == len(texts)


@pytest.mark.parametrize("text", ["&lt;", "a & b", "<b>", "a|b", "`x`"])
def test_escape_leaves_no_markup(text: str) -> None:
    assert not re.search(r"(?<!\\)[|`*<>]|&(?!amp;|lt;|gt;)", escape(text))


def test_no_string_becomes_an_element_of_the_page(make_run: Callable[..., Path]) -> None:
    """Of the hostile page and the plain one a parser sees the same elements and attributes."""
    rows = read_result(make_run()).rows
    pages: list[set[tuple[str, tuple[str, ...]]]] = []
    for name in ("gkd", HOSTILE + "\"' onload=alert(1) </svg></style></title>"):
        named = [replace(row, method=name) if row.method == "gkd" else row for row in rows]
        run = make_run(
            f"page{len(pages)}", rows=named, suite=name, checks=[Check(name, True, name)], command=[name]
        )
        build_report(run)
        pages.append(_elements((run / "report.html").read_text(encoding="utf-8")))
    assert pages[0] == pages[1]


def test_the_page_asks_for_no_other_file(make_run: Callable[..., Path]) -> None:
    run = make_run()
    build_report(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)="(?!#)[^"]*""", page)
    assert "url(http" not in page
    assert "default-src 'none'" in page
    assert "<title>gkd γ=3" in page  # what a pointer shows


def test_changed_records_are_refused(make_run: Callable[..., Path]) -> None:
    run = make_run()
    with (run / RECORDS_FILE).open("a", encoding="utf-8") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match="changed after the run"):
        build_report(run)


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_an_unfinished_run_says_what_is_missing(make_run: Callable[..., Path], status: str) -> None:
    """A run that says "running" while no command holds its folder was ended by a crash."""
    run = make_run(status=status, rows=[], checks=[], n_effective=5)
    text = build_report(run).read_text(encoding="utf-8")
    assert "the run is interrupted: 0 of 64 generations are there" in text.splitlines()[2]
    assert "There are no rows" in text
    assert "![" not in text


def test_a_row_without_figures_does_not_stop_the_report(make_run: Callable[..., Path]) -> None:
    rows = [_empty(row) if row.method == "gkd" else row for row in read_result(make_run()).rows]
    text = build_report(make_run("partial", rows=rows)).read_text(encoding="utf-8")
    assert "| gkd | 3 | – |" in text


def test_a_gamma_sweep_builds_and_shows_every_row(make_run: Callable[..., Path]) -> None:
    run = make_run(gammas=range(1, 9))
    assert build_report(run).read_text(encoding="utf-8").count("| contrastive |") >= 16
    assert result_table(read_result(run)).row_count == len(read_result(run).rows)


def test_comparing_refuses_another_dtype_and_force_marks_it(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    first = make_run("first")
    provenance = {**read_result(first).provenance, "dtype": "bfloat16"}
    runs = [first, make_run("second", provenance=provenance)]
    with pytest.raises(UserError, match="dtype: float32 against bfloat16"):
        compare_runs(runs, tmp_path / "out")
    text = compare_runs(runs, tmp_path / "out", force=True).read_text(encoding="utf-8")
    assert "> Not like for like: dtype: float32 against bfloat16" in text


def test_comparing_refuses_other_prompts_of_the_same_name(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    provenance = read_result(make_run()).provenance
    runs = [make_run(name, provenance={**provenance, "prompts_sha256": name}) for name in ("one", "two")]
    with pytest.raises(UserError, match=r"prompts .*one against two"):
        compare_runs(runs, tmp_path / "out")


def test_an_older_run_that_does_not_name_a_field_is_compared(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    config = read_result(make_run()).config
    old, new, other = (
        make_run(name, config={**config, "data": data})
        for name, data in {
            "old": {"source": "a"},
            "new": {"source": "a", "turns": "all"},
            "other": {"source": "b", "turns": "all"},
        }.items()
    )
    assert compare_runs([old, new], tmp_path / "out").is_file()
    with pytest.raises(UserError, match=r"data: .*'a'.* against .*'b'"):
        compare_runs([new, other], tmp_path / "out")


def _scaled(row: SummaryRow, factor: float) -> SummaryRow:
    assert row.speedup is not None
    value = row.speedup.value * factor
    bounds = replace(row.speedup, value=value, low=0.97 * value, high=1.03 * value)
    return replace(row, speedup=bounds, speedup_joint=bounds)


def _empty(row: SummaryRow) -> SummaryRow:
    nothing: Any = dict.fromkeys(["speedup", "decode_speedup", "alpha_expected", "alpha_counted", "tau", "c"])
    return replace(
        row, n_effective=0, n_failed=row.n_requested, acceptance_by_position=[None] * row.gamma, **nothing
    )


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, tuple[str, ...]]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add((tag, tuple(name for name, _ in attrs)))


def _elements(page: str) -> set[tuple[str, tuple[str, ...]]]:
    """Every kind of element with the names of its attributes."""
    parser = _Parser()
    parser.feed(page)
    return parser.seen - {("td", ("class", "title"))}


def test_a_killed_run_is_compared_by_what_it_left(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """It says "running", without rows: both come from its records, and the comparison says so."""
    runs = [make_run("whole"), make_run("killed", status="running", rows=[])]
    whole, killed = compare_runs(runs, tmp_path / "out").read_text(encoding="utf-8").split("### killed", 1)
    assert "; interrupted: " in whole
    assert "| gkd | 3 |" in killed
