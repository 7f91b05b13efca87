"""Task accuracy where the reference holds an answer: GSM8K's, which end in "#### 42"."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal

from specalign.metrics.statistics import ratio_interval
from specalign.results import Interval

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def reference_answer(reference: str) -> Decimal | None:
    """The number after the last "####" (Cobbe et al. 2021, arXiv:2110.14168); None where there is none."""
    _, marker, tail = reference.rpartition("####")
    return last_number(tail) if marker else None


def last_number(text: str) -> Decimal | None:
    """The last number of a text, thousands separators left out."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def accuracy(outputs: Sequence[str], references: Sequence[str], prompts: Sequence[str]) -> Interval | None:
    """Share of outputs whose last number is the reference's answer, with its interval over prompts (ids).

    An output that repeats "#### number" is judged by that number, being its last. Pairs whose reference has no
    answer are left out; None where no pair remains.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for output, reference, prompt in zip(outputs, references, prompts, strict=True):
        answer = reference_answer(reference)
        if answer is not None:
            right[prompt].append(last_number(output) == answer)
    return ratio_interval(
        [sum(own) for own in right.values()], [len(own) for own in right.values()], share=True
    )
