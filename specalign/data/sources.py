"""From the name of a data set to its examples."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from specalign.data.bad_rows import BadRow, listed, require_usable
from specalign.data.conversations import conversation_column, example_from_conversation, with_answers
from specalign.data.docstrings import docstring_examples
from specalign.data.examples import (
    SOURCES_OWN,
    USUAL,
    Columns,
    Example,
    RowError,
    Split,
    example_from_row,
    with_distinct_ids,
)
from specalign.data.files import Rows, local_rows
from specalign.data.functions import function_examples
from specalign.data.splits import disjoint, part_of
from specalign.data.tokenised import IDS, example_from_ids
from specalign.errors import UserError, unknown
from specalign.names import ENDINGS, is_file_name, is_folder, is_local
from specalign.terminal import say


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

BUILTIN: dict[str, Callable[[Split], Sequence[Example]]] = {
    "builtin:docstrings": docstring_examples,
    "builtin:functions": function_examples,
}
"""Read from the interpreter that runs."""

NAMES = (*BUILTIN, "spec_bench:PATH", *HUB, "owner/name", "a data file or folder")
FEW = 64
"""So few rows of a hub data set are streamed instead of downloading all of it."""
HOPELESS = 200
"""Bad rows without a good one after which reading ends."""

MULTI_TURN = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""Spec-Bench's rows from MT-bench, which its tables call multi-turn conversation: one of its six categories."""


@dataclass(frozen=True)
class Reading:
    """What reading a split gave."""

    examples: list[Example]
    bad: list[BadRow]


def load_examples(
    source: str,
    split: Split,
    *,
    columns: Columns = SOURCES_OWN,
    limit: int | None = None,
    skip_bad_rows: bool = False,
) -> list[Example]:
    """The first ``limit`` examples of a split of ``source``; no two have the same id.

    Empty names in ``columns`` are the source's own ones ("document" and "reference" in local files).
    A row without a document whose messages, conversations, prompt or turns are a list is a conversation.
    ``builtin:docstrings`` and ``builtin:functions`` · ``spec_bench:PATH`` (a test set: all categories, all turns;
    ``columns`` do not apply) · a local file (see :mod:`specalign.data.files`), which is cut into splits by content
    unless all of it is asked for (see :mod:`specalign.data.splits`), or a folder with files named after the splits ·
    ``cnn_dailymail``, ``xsum``, ``gsm8k``, ``wmt``, or any hub data set as ``owner/name`` or
    ``owner/name:configuration``.
    Raises UserError for an unknown source, split or column, for no rows at all, and for bad rows, which it
    lists by line; with ``skip_bad_rows`` they are left out and listed on standard error, as long as they are not
    most rows.
    """
    found = read_examples(source, split, columns=columns, limit=limit, skip_bad_rows=skip_bad_rows)
    if found.bad:
        say(f"specalign: {source}: left out {listed(found.bad)}", file=sys.stderr)
    return found.examples


def load_splits(
    source: str,
    limits: Mapping[Split, int | None],
    *,
    columns: Columns = SOURCES_OWN,
    skip_bad_rows: bool = False,
    tell: Callable[[str], None] = lambda line: say(f"specalign: {line}", file=sys.stderr),
) -> dict[Split, list[Example]]:
    """The first ``limits[split]`` examples (None: all) of each split that ``limits`` names; no two share a document.

    A source's own splits may overlap: then training gives way to validation and validation to the test, and
    ``tell`` says so, as it does where a file is cut into splits. A split is the same whatever the limit of an
    earlier one of these three. Raises UserError as :func:`load_examples` does, and where nothing remains.
    """
    read = {
        split: read_examples(source, split, columns=columns, limit=limit, skip_bad_rows=skip_bad_rows)
        for split, limit in limits.items()
    }
    if not has_splits(source):
        tell(split_note(source))
    for line in dict.fromkeys(listed(found.bad) for found in read.values() if found.bad):
        tell(f"{source}: left out {line}")
    loaded = {split: found.examples for split, found in read.items()}
    kept = disjoint(loaded)
    for split, examples in loaded.items():
        n_shared = len(examples) - len(kept[split])
        if n_shared and not kept[split]:
            raise UserError(f"{source}: every row of its {split} split is in a held-out split too")
        if n_shared:
            tell(
                f"{source}: {n_shared} of {len(examples)} rows of {split} are held out too: left out of {split}"
            )
    return kept


def read_examples(
    source: str, split: Split, *, columns: Columns, limit: int | None, skip_bad_rows: bool
) -> Reading:
    """What :func:`load_examples` gives, and the rows that it leaves out."""
    whole = has_splits(source) or split == "all"
    stop = limit if whole else None
    good: list[Example] = []
    bad: list[BadRow] = []
    for found in _examples(source, split, columns, stop):
        if isinstance(found, Example):
            good.append(found)
        else:
            bad.append(found)
        if len(good) == stop or (not good and len(bad) == HOPELESS):
            break
    require_usable(source, len(good), bad, skip=skip_bad_rows)
    if not good:
        raise UserError(f"data set {source!r}, split {split!r}, is empty")
    good = with_distinct_ids(good)
    return Reading(good if whole else part_of(good, split, source)[:limit], bad)


def has_splits(source: str) -> bool:
    """Whether a source comes in splits; a local file does not."""
    return not is_file_name(source) or source.startswith("spec_bench:") or is_folder(source)


def split_note(source: str) -> str:
    """What is done with a source without splits."""
    return (
        f"{source} has no splits of its own: by a hash of their documents a tenth of its rows is held out for "
        "validation, a tenth for the test"
    )


def _examples(source: str, split: Split, columns: Columns, limit: int | None) -> Iterator[Example | BadRow]:
    if source.startswith("builtin:"):
        if source not in BUILTIN:
            raise unknown("data set", source, BUILTIN)
        return iter(BUILTIN[source](split))
    if source.startswith("spec_bench:"):
        return _made(_spec_bench_rows(source.removeprefix("spec_bench:"), split), _spec_bench_example)
    if is_local(source):
        paths = [Path(source)] if not is_folder(source) else _split_files(Path(source), split)
        return _tabular(chain.from_iterable(map(local_rows, paths)), columns, USUAL)
    known = HUB.get(source) or hub_set(source)
    return _tabular(_hub_rows(known, split, limit), columns, known.columns)


def _tabular(rows: Rows, columns: Columns, known: Columns) -> Iterator[Example | BadRow]:
    named = Columns(columns.document or known.document, columns.reference or known.reference)

    def example(row: Mapping[str, Any], default_id: str) -> Example:
        if IDS in row and named.document not in row:
            return example_from_ids(row, default_id)
        column = columns.messages
        if not column and named.document == USUAL.document and named.document not in row:
            column = conversation_column(row) or ""
        if column:
            return example_from_conversation(row, column, named.reference, default_id)
        return example_from_row(row, named, default_id)

    return _made(rows, example)


def _made(rows: Rows, make: Callable[[Mapping[str, Any], str], Example]) -> Iterator[Example | BadRow]:
    """What each row becomes; its number is its id where it has none."""
    for number, (where, row) in enumerate(rows, start=1):
        try:
            if isinstance(row, RowError):
                raise row
            yield make(row, str(number))
        except RowError as error:
            yield BadRow(where, str(error))


def _split_files(folder: Path, split: Split) -> list[Path]:
    """The split's file; for all of them, every split's."""
    names = ("train", "validation", "test") if split == "all" else (split,)
    found = [
        next(iter(path for ending in ENDINGS if (path := folder / f"{name}{ending}").exists()), None)
        for name in names
    ]
    files = [path for path in found if path]
    if not files:
        raise UserError(f"{folder} has no file {names[0]}.jsonl (or another of: {', '.join(ENDINGS)})")
    return files


def _spec_bench_rows(name: str, split: Split) -> Rows:
    if not name.endswith(".jsonl"):
        raise UserError(f"spec_bench:PATH takes Spec-Bench's question.jsonl, not {name!r}")
    if split not in ("test", "all"):
        raise UserError(f"spec_bench:{name} is a test set, without a {split} split: train on other data")
    return local_rows(Path(name))


def _spec_bench_example(row: Mapping[str, Any], default_id: str) -> Example:
    """Spec-Bench's question.jsonl: a row's turns, and the references that it has for some of them."""
    turns, references = row.get("turns"), row.get("reference") or [""]
    if not isinstance(turns, list) or not turns:
        raise RowError("no 'turns'; is this Spec-Bench's question.jsonl?")
    # the rag rows list the parts of one answer
    answers = [", ".join(map(str, each)) if isinstance(each, list) else each for each in references]
    category = row.get("category")
    if category in MULTI_TURN:
        category = "multi_turn_conversation"
    fields = {"document": turns[0], "reference": answers[0], "category": category}
    first = example_from_row(fields, USUAL, str(row.get("question_id", default_id)))
    return replace(first, messages=with_answers(turns, answers)) if len(turns) > 1 else first


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
