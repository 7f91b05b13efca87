"""Whether a run's figures follow from its raw files: what a reader would do who does not trust result.json."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from specalign.analysis.summary import summarise
from specalign.probes import RunFiles
from specalign.results import Alphabet

JUDGED = ("n_tie_divergences", "n_numeric_divergences", "n_unexplained_divergences")
"""Figures that took the target's logits: not recomputed."""
TOLERANCE = 1e-6


def untrue_figures(run: RunFiles) -> list[str]:
    """The figures of result.json that its records and probes do not give, each in words.

    Figures that the run was made without (an older version's) are passed over.
    """
    rows = summarise(run.records, None, run.probes, words=_rouge_words(run))
    again = {(row.method, row.temperature, row.gamma): row for row in rows}
    wrong = []
    for row in run.result.rows:
        key = row.method, row.temperature, row.gamma
        name = f"{row.method}, temperature {row.temperature:g}, gamma {row.gamma}"
        if key not in again:
            wrong.append(f"{name}: there are no records of it")
            continue
        recomputed = asdict(again[key])
        for figure, written in asdict(row).items():
            if figure not in JUDGED and not _same(written, recomputed[figure]):
                wrong.append(
                    f"{name}: {figure} is {_short(written)}, the raw files give {_short(recomputed[figure])}"
                )
    return wrong


def _rouge_words(run: RunFiles) -> Alphabet:
    """What ROUGE's words were when the run was made."""
    found = [row.rouge_vs_reference or row.rouge_vs_target for row in run.result.rows]
    return "ascii" if any(rouge and rouge.words == "ascii" for rouge in found) else "unicode"


def _same(written: Any, recomputed: Any) -> bool:
    """Equal up to rounding; what was not written is not compared."""
    if written is None:
        return True
    if isinstance(written, dict):
        return isinstance(recomputed, dict) and all(
            _same(value, recomputed[key]) for key, value in written.items()
        )
    if isinstance(written, list):
        return len(written) == len(recomputed) and all(map(_same, written, recomputed))
    if isinstance(written, float) and isinstance(recomputed, (int, float)):
        return math.isclose(written, recomputed, rel_tol=TOLERANCE, abs_tol=1e-12)
    return written == recomputed


def _short(value: Any) -> str:
    return str(value.get("value", value) if isinstance(value, dict) else value)
