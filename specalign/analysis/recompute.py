"""Whether a run's figures follow from its raw files: what a reader would do who does not trust result.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from specalign.analysis.load_rows import load_rows
from specalign.analysis.summary import summarise
from specalign.analysis.verdict import trust_checks
from specalign.metrics import METRICS_VERSION
from specalign.results import Alphabet, LoadRow, SummaryRow
from specalign.run_files import RunFiles

JUDGED = ("n_tie_divergences", "n_numeric_divergences", "n_unexplained_divergences")
"""Figures that took the target's logits: only their sum is recomputed."""
TOLERANCE = 1e-6
Row = SummaryRow | LoadRow


def is_current(run: RunFiles) -> bool:
    """Whether its figures are by the definitions of this version."""
    return run.result.metrics_version == METRICS_VERSION


def untrue_figures(run: RunFiles) -> list[str]:
    """The figures of result.json that its records and probes do not give, each in words.

    Rows that are missing or too many are told; figures that an older version did not know are passed over.
    """
    again = summarise(run.records, None, run.probes, words=_rouge_words(run))
    wrong = _untrue_rows(run.result.rows, again, run) + _untrue_rows(
        run.result.load, load_rows(run.probes), run
    )
    statuses = [record.status for record in run.records]
    for name, found in (("n_effective", statuses.count("ok")), ("n_failed", statuses.count("failed"))):
        if getattr(run.result, name) != found:
            wrong.append(f"{name} is {getattr(run.result, name)}, the records give {found}")
    return wrong


def untrue_checks(run: RunFiles) -> list[str]:
    """The checks of result.json that its files do not give, each in words.

    Empty where they are of other definitions: of another metrics version, or of one before 4, when a check more was no
    new version.
    """
    if not is_current(run) or (run.result.schema_version == 1 and int(run.result.metrics_version) < 4):
        return []
    judged = {_key(row): {name: getattr(row, name) for name in JUDGED} for row in run.result.rows}
    rows = [
        replace(row, **judged.get(_key(row), {}))
        for row in summarise(run.records, None, run.probes, words=_rouge_words(run))
    ]
    order = {_key(row): place for place, row in enumerate(run.result.rows)}
    rows.sort(key=lambda row: order.get(_key(row), len(order)))
    due = {check.name: check for check in trust_checks(run.result, run.records, rows, run.probes)}
    written = {check.name: check for check in run.result.checks}
    wrong = [f"the check {name!r} is missing" for name in due if name not in written]
    wrong += [f"the check {name!r} is none of this run's" for name in written if name not in due]
    for name in due.keys() & written.keys():
        if written[name] != due[name]:
            wrong.append(
                f"the check {name!r} says {_told(written[name])}, the raw files give {_told(due[name])}"
            )
    return sorted(wrong)


def _told(check: Any) -> str:
    verdict = {True: "passed", False: "failed", None: "not judged"}[check.passed]
    return f"{verdict} ({check.detail})"


def _rouge_words(run: RunFiles) -> Alphabet:
    """What ROUGE's words were when the run was made."""
    found = [row.rouge_vs_reference or row.rouge_vs_target for row in run.result.rows]
    return "ascii" if any(rouge and rouge.words == "ascii" for rouge in found) else "unicode"


def _untrue_rows(rows: Sequence[Row], recomputed: Sequence[Row], run: RunFiles) -> list[str]:
    due = {_key(row): row for row in recomputed}
    wrong = [f"{_name(row)}: its row is missing" for key, row in due.items() if key not in map(_key, rows)]
    for row in rows:
        if _key(row) not in due:
            wrong.append(f"{_name(row)}: there are no records of it")
            continue
        again = asdict(due[_key(row)])
        for figure, written in asdict(row).items():
            if figure not in JUDGED and not _same(written, again[figure], nulls=not is_current(run)):
                wrong.append(
                    f"{_name(row)}: {figure} is {_short(written)}, the raw files give {_short(again[figure])}"
                )
        judged = sum(getattr(row, name, 0) for name in JUDGED)
        different = sum(again.get(name, 0) for name in JUDGED)
        if judged != different:
            wrong.append(f"{_name(row)}: {judged} outputs leave the plain target's, in the records {different}")
    return wrong


def _key(row: Row) -> tuple[object, ...]:
    return row.method, getattr(row, "temperature", None), row.gamma, getattr(row, "concurrency", None)


def _name(row: Row) -> str:
    where = f"{row.concurrency} at a time" if isinstance(row, LoadRow) else f"temperature {row.temperature:g}"
    return f"{row.method}, {where}, gamma {row.gamma}"


def _same(written: Any, recomputed: Any, *, nulls: bool) -> bool:
    """Equal up to rounding; with ``nulls`` what was not written is not compared."""
    if written is None and nulls:
        return True
    if isinstance(written, dict) and isinstance(recomputed, dict):
        return all(_same(value, recomputed[key], nulls=nulls) for key, value in written.items())
    if isinstance(written, list) and isinstance(recomputed, list):
        pairs = zip(written, recomputed, strict=False)
        return len(written) == len(recomputed) and all(_same(*pair, nulls=nulls) for pair in pairs)
    if isinstance(written, float) and isinstance(recomputed, (int, float)):
        return math.isclose(written, recomputed, rel_tol=TOLERANCE, abs_tol=1e-12)
    return bool(written == recomputed)


def _short(value: Any) -> str:
    return str(value.get("value", value) if isinstance(value, dict) else value)
