"""From the name of a data set to its examples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from specalign.data.docstrings import docstring_examples
from specalign.data.examples import SOURCES_OWN, USUAL, Columns, Example, Split, example_from_row
from specalign.errors import UserError, unknown

HUB = {
    "cnn_dailymail": ("abisee/cnn_dailymail", "3.0.0", Columns("article", "highlights")),
    "xsum": ("EdinburghNLP/xsum", None, Columns("document", "summary")),
}
"""Short name -> (hub id, configuration, columns)."""

LOCAL = (".jsonl", ".parquet", ".csv")


def load_examples(
    source: str, split: Split, *, columns: Columns = SOURCES_OWN, limit: int | None = None
) -> list[Example]:
    """The first ``limit`` examples of a split of ``source``.

    Empty names in ``columns`` are the source's own ones ("document" and "reference" in local files).
    ``builtin:docstrings`` · ``spec_bench:PATH`` (one split, all categories; ``columns`` do not apply) · a local
    .jsonl, .parquet or .csv file, or a folder with files named after the splits · ``cnn_dailymail``, ``xsum``,
    or any hub data set as ``owner/name`` or ``owner/name:configuration``.
    Raises UserError for an unknown source, split or column, a bad row (by its number), or no rows at all.
    """
    examples = list(islice(_examples(source, split, columns), limit))
    if not examples:
        raise UserError(f"data set {source!r}, split {split!r}, is empty")
    return examples


def _examples(source: str, split: Split, columns: Columns) -> Iterator[Example]:
    if source.startswith("builtin:"):
        if source != "builtin:docstrings":
            raise unknown("data set", source, ("builtin:docstrings",))
        return iter(docstring_examples(split))
    if source.startswith("spec_bench:"):
        return _spec_bench(Path(source.removeprefix("spec_bench:")))
    if source.endswith(LOCAL) or Path(source).is_dir():
        return _from_rows(_local_rows(_split_file(Path(source), split)), source, _named(columns, USUAL))
    name, configuration, known = HUB.get(source) or (*_hub_name(source), USUAL)
    return _from_rows(_hub_rows(name, configuration, split), source, _named(columns, known))


def _named(columns: Columns, known: Columns) -> Columns:
    return Columns(columns.document or known.document, columns.reference or known.reference)


def _from_rows(rows: Iterator[Mapping[str, Any]], source: str, columns: Columns) -> Iterator[Example]:
    for number, row in enumerate(rows, start=1):
        yield example_from_row(row, columns, f"{source}, row {number}", default_id=str(number))


def _split_file(path: Path, split: Split) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        for ending in LOCAL:
            if (path / f"{split}{ending}").is_file():
                return path / f"{split}{ending}"
        raise UserError(f"{path} has no file {split}.jsonl, {split}.parquet or {split}.csv")
    raise UserError(f"no such data file: {path}")


def _local_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".jsonl":
        yield from _json_lines(path)
        return
    import pandas as pd

    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str)
    known = frame.astype(object).where(frame.notna(), None)
    for row in known.to_dict("records"):
        yield {str(key): value for key, value in row.items()}


def _json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        raise UserError(f"no such data file: {path}")
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: not a JSON object")
            yield row


def _spec_bench(path: Path) -> Iterator[Example]:
    """Spec-Bench's question.jsonl: the first turn is the document; later turns depend on answers."""
    for number, row in enumerate(_json_lines(path), start=1):
        where = f"{path}, line {number}"
        turns, references = row.get("turns"), row.get("reference") or [""]
        if not isinstance(turns, list) or not turns:
            raise UserError(f"{where}: no 'turns'; is this Spec-Bench's question.jsonl?")
        reference = references[0]
        if isinstance(reference, list):  # the rag rows list the parts of one answer
            reference = ", ".join(map(str, reference))
        fields = {"document": turns[0], "reference": reference, "category": row.get("category")}
        yield example_from_row(fields, USUAL, where, default_id=str(row.get("question_id", number)))


def _hub_name(source: str) -> tuple[str, str | None]:
    name, _, configuration = source.partition(":")
    if name.count("/") != 1:
        raise unknown(
            "data set", source, ("builtin:docstrings", "spec_bench:PATH", *HUB, "owner/name", "FILE.jsonl")
        )
    return name, configuration or None


def _hub_rows(name: str, configuration: str | None, split: Split) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, configuration, split=split)
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = f"download it on a machine with a network: hf download --repo-type dataset {name}"
        raise UserError(f"cannot load data set {name!r}, split {split!r}: {lines[0]}; {hint}") from None
    return iter(rows)
