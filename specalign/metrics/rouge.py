"""ROUGE F1 by the rouge-score package (Porter stemmer on, as in the summarisation literature).

ROUGE-Lsum takes the longest common subsequence sentence by sentence; sentences end at a line break, and after
`.`, `!` or `?` before white space.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from specalign.metrics.statistics import ratio_interval
from specalign.results import Interval, Rouge

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def mean_rouge(outputs: Sequence[str], references: Sequence[str], prompts: Sequence[str]) -> Rouge | None:
    """Mean F1 of each output against its reference, with intervals over prompts (ids, one an output).

    Pairs with an empty reference are left out; None where no pair remains. An empty output scores 0. Outputs to
    one prompt are resampled together.
    """
    by_prompt: dict[str, list[dict[str, float]]] = defaultdict(list)
    for output, reference, prompt in zip(outputs, references, prompts, strict=True):
        if reference.strip():
            score = _scorer().score(sentence_a_line(reference), sentence_a_line(output))
            by_prompt[prompt].append({kind: score[kind].fmeasure for kind in KINDS})
    means = [_mean(list(by_prompt.values()), kind) for kind in KINDS]
    rouge1, rouge2, rouge_l, rouge_lsum = means
    return Rouge(rouge1, rouge2, rouge_l, rouge_lsum) if rouge1 and rouge2 and rouge_l else None


def sentence_a_line(text: str) -> str:
    """``text`` with every sentence on a line of its own."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def _mean(by_prompt: Sequence[Sequence[dict[str, float]]], kind: str) -> Interval | None:
    return ratio_interval([sum(s[kind] for s in own) for own in by_prompt], [len(own) for own in by_prompt])


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(KINDS, use_stemmer=True)
