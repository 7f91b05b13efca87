"""The comparison table, as cells of text; markdown and terminal print the same ones."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence

from rich.table import Table
from rich.text import Text

from specalign.reports.rows import draft_length
from specalign.results import BenchmarkResult, Interval, Rouge, SummaryRow
from specalign.text import plain

Column = tuple[str, Callable[[SummaryRow], str]]
NONE = "–"
SAME = 1e-9


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash for None."""
    return NONE if value is None else f"{value:.{digits}f}"


def interval(value: Interval | None, digits: int = 2, unit: str = "") -> str:
    """``value [low, high]``; only the value where there are no bounds."""
    if value is None:
        return NONE
    text = f"{value.value:.{digits}f}{unit}"
    if value.low is None or value.high is None:
        return text
    return f"{text} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def bounds(value: Interval | None) -> str:
    """``[low, high]``; a dash where there are none."""
    if value is None or value.low is None or value.high is None:
        return NONE
    return f"[{value.low:.2f}, {value.high:.2f}]"


def whole(row: SummaryRow) -> str:
    """The speed-up over whole requests at their own lengths, where it is another figure."""
    own = row.whole_speedup
    if own is None or row.speedup is None or abs(own.value / row.speedup.value - 1) < SAME:
        return NONE
    return interval(own, unit="x")


def percentiles(values: Sequence[float], digits: int = 0) -> str:
    """``p50 / p95 / p99``; a dash for none."""
    return " / ".join(f"{value:.{digits}f}" for value in values) or NONE


def rouges(value: Rouge | None) -> str:
    """ROUGE-1 / 2 / Lsum, times 100: the literature's ROUGE-L of summaries is Lsum."""
    if value is None:
        return NONE
    parts = value.rouge1, value.rouge2, value.rougeLsum
    return " / ".join(NONE if part is None else f"{100 * part.value:.1f}" for part in parts)


COLUMNS: list[Column] = [
    ("method", lambda row: row.method),
    ("γ", lambda row: draft_length(row) if row.gamma else NONE),
    ("speed-up", lambda row: interval(row.speedup, unit="x") if row.kind != "target" else "1"),
    ("jointly", lambda row: bounds(row.speedup_joint)),
    ("whole", whole),
    ("α expected", lambda row: interval(row.alpha_expected)),
    ("α counted", lambda row: interval(row.alpha_counted)),
    ("break-even α", lambda row: number(row.break_even_alpha)),
    ("τ", lambda row: interval(row.tau)),
    ("c", lambda row: number(row.c)),
    ("decode speed-up", lambda row: number(row.decode_speedup.value if row.decode_speedup else None)),
    ("predicted", lambda row: number(row.predicted_speedup)),
    ("tokens/s", lambda row: interval(row.tokens_per_s, 1)),
    ("ROUGE-1/2/Lsum vs reference", lambda row: rouges(row.rouge_vs_reference)),
    ("ROUGE-1/2/Lsum vs target", lambda row: rouges(row.rouge_vs_target)),
]
NAMING = ("method", "γ")
DETAILS = ("whole", "α expected", "c", "decode speed-up", "predicted", "ROUGE-1/2/Lsum vs target")
"""Columns of a second table, beside method and γ: all in one would be wider than a page."""
TERMINAL = ("method", "γ", "speed-up", "jointly", "α counted", "break-even α", "τ", "c", "tokens/s")


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A GitHub table; whatever the cells hold, they stay cells."""
    return [
        _line([escape(cell) for cell in header]),
        _line(["---"] * len(header)),
        *(_line([escape(cell) for cell in line]) for line in lines),
    ]


def escape(text: str) -> str:
    """``text`` as literal characters of one markdown table cell or paragraph."""
    flat = html.escape(" ".join(plain(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]|#$~])", r"\\\1", flat)


def table_cells(rows: Sequence[SummaryRow]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of one temperature, the main columns; those that no row fills are left out."""
    return _cells(rows, [column for column in COLUMNS if column[0] not in DETAILS])


def detail_cells(rows: Sequence[SummaryRow]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the further columns, behind method and γ."""
    return _cells(rows, [column for column in COLUMNS if column[0] in (*NAMING, *DETAILS)])


def _cells(rows: Sequence[SummaryRow], columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    cells = [[show(row) for _, show in columns] for row in rows]
    kept = [index for index in range(len(columns)) if any(line[index] != NONE for line in cells)]
    return [columns[index][0] for index in kept], [[line[index] for index in kept] for line in cells]


def comparison(rows: Sequence[SummaryRow]) -> list[str]:
    """The main table of one temperature, in markdown."""
    return markdown_table(*table_cells(rows))


def result_table(result: BenchmarkResult) -> Table:
    """The comparison for the terminal."""
    table = Table(title=f"{result.suite}: speculative decoding of {result.target.source}")
    columns = [("temp.", lambda row: f"{row.temperature:g}"), *(c for c in COLUMNS if c[0] in TERMINAL)]
    for name, _ in columns:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in result.rows:
        table.add_row(*(Text(show(row)) for _, show in columns))
    return table


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
