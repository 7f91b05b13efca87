"""Parts of a data set that share no document: a file cut in three, and splits that overlap made disjoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from specalign.data.examples import Example, Split
from specalign.errors import UserError

HELD_OUT = 0.1
"""Share of the documents that validation and test have each."""
SEED = "specalign 1"
"""Fixed, so that training and benchmarks cut a file alike, whatever their own seeds."""
FEWEST = 3
"""Documents that can be cut into three parts."""


def content(example: Example) -> str:
    """What makes two rows the same one: their document, whatever its white space and capitals."""
    return " ".join(example.document.split()).casefold()


def document_hash(example: Example) -> str:
    """The first 64 bits of a hash of that, by which it is known without the text."""
    return hashlib.sha256(content(example).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def part_of(examples: Sequence[Example], split: Split, source: str) -> list[Example]:
    """The rows of ``split`` in data without splits of their own, in their order; ``all`` are all of them.

    Documents are ordered by a hash of their content: the first tenth is for the test, the next one for
    validation (one each at least), the others are for training. Equal documents stay together. Raises UserError
    where there are fewer than three different ones.
    """
    if split == "all":
        return list(examples)
    documents = sorted({content(example) for example in examples}, key=_place)
    if len(documents) < FEWEST:
        raise UserError(
            f"{source} has no splits of its own and {len(documents)} different documents: too few to hold any out; "
            "give a folder with train.jsonl, validation.jsonl and test.jsonl, or more rows"
        )
    n = max(1, round(HELD_OUT * len(documents)))
    bounds = {"test": (0, n), "validation": (n, 2 * n), "train": (2 * n, len(documents))}
    chosen = set(documents[slice(*bounds[split])])
    return [example for example in examples if content(example) in chosen]


def disjoint(splits: Mapping[Split, Sequence[Example]]) -> dict[Split, list[Example]]:
    """Each split without the rows whose document a later one has, in the order train, validation, test.

    So training gives way to what is held out, and the test never depends on another split's size.
    """
    taken: set[str] = set()
    kept: dict[Split, list[Example]] = {}
    for split in ("test", "validation", "train"):
        if split in splits:
            kept[split] = [example for example in splits[split] if content(example) not in taken]
            taken |= set(map(content, splits[split]))
    return kept


def _place(document: str) -> str:
    return hashlib.sha256(f"{SEED}\n{document}".encode()).hexdigest()
