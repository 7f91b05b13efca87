"""ROUGE F1 by the rouge-score package, with words of any script (:mod:`specalign.metrics.words`).

Porter's stemmer is on, as in the summarisation literature, where the reference is English as far as its letters tell.

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
from specalign.metrics.words import Words, is_english
from specalign.results import Alphabet, Interval, Rouge

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def mean_rouge(
    outputs: Sequence[str], references: Sequence[str], prompts: Sequence[str], *, words: Alphabet = "unicode"
) -> Rouge | None:
    """Mean F1 of each output against its reference, with intervals over prompts (ids, one an output).

    Pairs with an empty reference are left out; None where no pair remains. An empty output scores 0. Outputs to
    one prompt are resampled together. ``words = "ascii"`` is rouge-score's own tokenizer, which sees ASCII
    letters and digits alone and stems always: for results made with it. On ASCII texts both give the same.
    """
    by_prompt: dict[str, list[dict[str, float]]] = defaultdict(list)
    for output, reference, prompt in zip(outputs, references, prompts, strict=True):
        if reference.strip():
            scorer = _scorer(words, words == "ascii" or is_english(reference))
            score = scorer.score(sentence_a_line(reference), sentence_a_line(output))
            by_prompt[prompt].append({kind: score[kind].fmeasure for kind in KINDS})
    means = [_mean(list(by_prompt.values()), kind) for kind in KINDS]
    rouge1, rouge2, rouge_l, rouge_lsum = means
    return Rouge(rouge1, rouge2, rouge_l, rouge_lsum, words) if rouge1 and rouge2 and rouge_l else None


def sentence_a_line(text: str) -> str:
    """``text`` with every sentence on a line of its own."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def _mean(by_prompt: Sequence[Sequence[dict[str, float]]], kind: str) -> Interval | None:
    sums = [sum(score[kind] for score in own) for own in by_prompt]
    return ratio_interval(sums, [len(own) for own in by_prompt], share=True)


@functools.cache
def _scorer(words: Alphabet, stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(KINDS, use_stemmer=stem, tokenizer=None if words == "ascii" else Words(stem))
