"""From the name of a data set to its examples."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specalign.data.docstrings import docstring_examples
from specalign.data.examples import SOURCES_OWN, USUAL, Columns, Example, RowError, Split, example_from_row
from specalign.data.files import ENDINGS, Rows, local_rows
from specalign.errors import UserError, unknown


@dataclass(frozen=True)
class HubSet:
    """A data set of the hub."""

    name: str
    configuration: str | None = None
    columns: Columns = USUAL
    splits: Mapping[Split, str] = field(default_factory=dict)
    """Where a split is called otherwise, or is a part of one."""
    licence: str = ""
    """As its card on the hub states it."""


HUB = {
    "cnn_dailymail": HubSet(
        "abisee/cnn_dailymail", "3.0.0", Columns("article", "highlights"), licence="Apache-2.0"
    ),
    "xsum": HubSet("EdinburghNLP/xsum", None, Columns("document", "summary"), licence="unknown"),
    "gsm8k": HubSet(
        "openai/gsm8k",
        "main",
        Columns("question", "answer"),
        {"train": "train[:95%]", "validation": "train[95%:]"},  # it has no validation split of its own
        licence="MIT",
    ),
    "wmt": HubSet("wmt/wmt14", "de-en", Columns("translation.en", "translation.de"), licence="unknown"),
}
"""Short names. ``wmt`` is WMT14 from English into German."""

NAMES = ("builtin:docstrings", "spec_bench:PATH", *HUB, "owner/name", "FILE.jsonl")
FEW = 64
"""So few rows of a hub data set are streamed instead of downloading all of it."""
SHOWN = 20
"""Bad rows that are listed."""
HOPELESS = 200
"""Bad rows without a good one after which reading ends."""

MULTI_TURN = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""Spec-Bench's rows from MT-bench, which its tables call multi-turn conversation: one of its six categories."""


@dataclass(frozen=True)
class BadRow:
    """A row that gives no example."""

    where: str
    problem: str


def load_examples(
    source: str,
    split: Split,
    *,
    columns: Columns = SOURCES_OWN,
    limit: int | None = None,
    skip_bad_rows: bool = False,
) -> list[Example]:
    """The first ``limit`` examples of a split of ``source``.

    Empty names in ``columns`` are the source's own ones ("document" and "reference" in local files).
    ``builtin:docstrings`` · ``spec_bench:PATH`` (one split, all categories, first turns; ``columns`` do not
    apply) · a local .jsonl, .parquet or .csv file, or a folder with files named after the splits ·
    ``cnn_dailymail``, ``xsum``, ``gsm8k``, ``wmt``, or any hub data set as ``owner/name`` or
    ``owner/name:configuration``.
    Raises UserError for an unknown source, split or column, for no rows at all, and for bad rows, which it
    lists by line; with ``skip_bad_rows`` they are left out and listed on standard error.
    """
    good: list[Example] = []
    bad: list[BadRow] = []
    for found in _examples(source, split, columns, limit):
        if isinstance(found, Example):
            good.append(found)
        else:
            bad.append(found)
        if len(good) == limit or (not good and len(bad) == HOPELESS):
            break
    if bad and not skip_bad_rows:
        raise UserError(f"{source}: {_listed(bad)}; mend the data, or leave such rows out with --skip-bad-rows")
    if not good:
        raise UserError(
            f"data set {source!r}, split {split!r}, is empty" + (f": {_listed(bad)}" if bad else "")
        )
    if bad:
        print(f"specalign: {source}: left out {_listed(bad)}", file=sys.stderr)
    return good


def _listed(bad: list[BadRow]) -> str:
    shown = [f"{row.where}: {row.problem}" for row in bad[:SHOWN]]
    rest = [f"and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    return f"{len(bad)} bad row{'s' if len(bad) > 1 else ''}: {', '.join([*shown, *rest])}"


def _examples(source: str, split: Split, columns: Columns, limit: int | None) -> Iterator[Example | BadRow]:
    if source.startswith("builtin:"):
        if source != "builtin:docstrings":
            raise unknown("data set", source, ("builtin:docstrings",))
        return iter(docstring_examples(split))
    if source.startswith("spec_bench:"):
        return _made(local_rows(_json_file(source.removeprefix("spec_bench:"))), _spec_bench_example)
    if source.endswith(ENDINGS) or Path(source).is_dir():
        return _tabular(local_rows(_split_file(Path(source), split)), columns, USUAL)
    known = HUB.get(source) or hub_set(source)
    return _tabular(_hub_rows(known, split, limit), columns, known.columns)


def _tabular(rows: Rows, columns: Columns, known: Columns) -> Iterator[Example | BadRow]:
    named = Columns(columns.document or known.document, columns.reference or known.reference)
    return _made(rows, lambda row, default_id: example_from_row(row, named, default_id))


def _made(rows: Rows, make: Callable[[Mapping[str, Any], str], Example]) -> Iterator[Example | BadRow]:
    """What each row becomes; its number is its id where it has none."""
    for number, (where, row) in enumerate(rows, start=1):
        try:
            if isinstance(row, RowError):
                raise row
            yield make(row, str(number))
        except RowError as error:
            yield BadRow(where, str(error))


def _split_file(path: Path, split: Split) -> Path:
    if path.is_dir():
        for ending in ENDINGS:
            if (path / f"{split}{ending}").is_file():
                return path / f"{split}{ending}"
        raise UserError(f"{path} has no file {split}.jsonl, {split}.parquet or {split}.csv")
    return path


def _json_file(name: str) -> Path:
    if not name.endswith(".jsonl"):
        raise UserError(f"spec_bench:PATH takes Spec-Bench's question.jsonl, not {name!r}")
    return Path(name)


def _spec_bench_example(row: Mapping[str, Any], default_id: str) -> Example:
    """Spec-Bench's question.jsonl: the first turn is the document; a second one depends on the answer."""
    turns, references = row.get("turns"), row.get("reference") or [""]
    if not isinstance(turns, list) or not turns:
        raise RowError("no 'turns'; is this Spec-Bench's question.jsonl?")
    reference = references[0]
    if isinstance(reference, list):  # the rag rows list the parts of one answer
        reference = ", ".join(map(str, reference))
    category = row.get("category")
    if category in MULTI_TURN:
        category = "multi_turn_conversation"
    fields = {"document": turns[0], "reference": reference, "category": category}
    return example_from_row(fields, USUAL, str(row.get("question_id", default_id)))


def hub_set(source: str) -> HubSet:
    """The hub data set of ``owner/name[:configuration]``; raises UserError for anything else."""
    name, _, configuration = source.partition(":")
    if name.count("/") != 1:
        raise unknown("data set", source, NAMES)
    return HubSet(name, configuration or None)


def _hub_rows(known: HubSet, split: Split, limit: int | None) -> Rows:
    rows = _hub_data(known, known.splits.get(split, split), few=limit is not None and limit <= FEW)
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _hub_data(known: HubSet, split: str, *, few: bool) -> Any:
    """The rows of a split; a few of them are streamed, where there is a network and the split is a whole one."""
    from datasets import load_dataset

    if few and "[" not in split:
        try:
            return load_dataset(known.name, known.configuration, split=split, streaming=True)
        except (OSError, ValueError):  # no network: the cache may have it
            pass
    try:
        return load_dataset(known.name, known.configuration, split=split)
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = f"download it on a machine with a network: hf download --repo-type dataset {known.name}"
        raise UserError(f"cannot load data set {known.name!r}, split {split!r}: {lines[0]}; {hint}") from None
