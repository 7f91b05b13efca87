"""ROUGE F1 by the rouge-score package (Porter stemmer on, as in the summarisation literature)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from specalign.metrics.statistics import mean_interval
from specalign.results import Interval, Rouge

KINDS = ("rouge1", "rouge2", "rougeL")


def mean_rouge(outputs: Sequence[str], references: Sequence[str]) -> Rouge | None:
    """Mean F1 of each output against its reference, with intervals over the pairs.

    Pairs with an empty reference are left out; None where no pair remains. An empty output scores 0.
    """
    scores = [
        _scorer().score(reference, output)
        for output, reference in zip(outputs, references, strict=True)
        if reference.strip()
    ]
    if not scores:
        return None
    means = {kind: mean_interval([score[kind].fmeasure for score in scores]) or Interval(0.0) for kind in KINDS}
    return Rouge(means["rouge1"], means["rouge2"], means["rougeL"])


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(KINDS, use_stemmer=True)
