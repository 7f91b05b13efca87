"""Splits share no document, whatever the file and the sizes asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specalign.data import Example, load_examples, load_splits
from specalign.data.examples import Split
from specalign.data.splits import HELD_OUT, content, disjoint, part_of
from specalign.errors import UserError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DOCUMENTS = st.lists(st.sampled_from([f"{a} {b}" for a in "abcdef" for b in "uvwxyz"]), max_size=60)


def rows(documents: Sequence[str]) -> list[Example]:
    return [Example(str(number), document) for number, document in enumerate(documents)]


@given(DOCUMENTS)
def test_a_file_is_cut_into_parts_that_share_no_document(documents: list[str]) -> None:
    """Together they are the file, each holds something, and the held-out ones a tenth of the documents each."""
    n = len(set(documents))
    if n < 3:
        with pytest.raises(UserError, match="too few to hold any out"):
            part_of(rows(documents), "train", "x.jsonl")
        return
    parts = {split: part_of(rows(documents), split, "x.jsonl") for split in SPLITS}
    found = {split: {content(example) for example in part} for split, part in parts.items()}
    assert sorted(int(example.id) for part in parts.values() for example in part) == list(range(len(documents)))
    assert sum(map(len, found.values())) == n
    assert len(found["validation"]) == len(found["test"]) == max(1, round(HELD_OUT * n))
    assert part_of(rows(documents), "all", "x.jsonl") == rows(documents)


@given(DOCUMENTS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_moves_none_into_another_part(documents: list[str], order: object) -> None:
    if len(set(documents)) < 3:
        return
    shuffled = documents[:]
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    for split in SPLITS:
        assert set(map(content, part_of(rows(documents), split, ""))) == set(
            map(content, part_of(rows(shuffled), split, ""))
        )


def test_copies_that_differ_in_white_space_and_capitals_stay_together() -> None:
    documents = [f"Word {number}" for number in range(30)]
    copies = [f" word\n{number} " for number in range(30)]
    for split in SPLITS:
        chosen = part_of(rows(documents + copies), split, "")
        assert len(chosen) == 2 * len({content(example) for example in chosen})


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_overlapping_splits_are_made_disjoint_and_the_test_is_left_as_it_is(
    train: list[str], validation: list[str], test: list[str]
) -> None:
    kept = disjoint({"train": rows(train), "validation": rows(validation), "test": rows(test)})
    assert kept["test"] == rows(test)
    assert kept["validation"] == [example for example in rows(validation) if example.document not in test]
    assert kept["train"] == [example for example in rows(train) if example.document not in {*validation, *test}]


def write(path: Path, documents: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"document": document}) + "\n" for document in documents))


def test_one_file_for_all_splits_is_cut_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write(path, [f"d {number}" for number in range(40)])
    told: list[str] = []
    found = load_splits(str(path), {"train": 20, "validation": 3, "test": None}, tell=told.append)
    assert {split: len(part) for split, part in found.items()} == {"train": 20, "validation": 3, "test": 4}
    assert told == [line for line in told if "has no splits of its own" in line]
    assert len(told) == 1
    other = load_splits(str(path), {"train": 7, "validation": None, "test": 2}, tell=told.append)
    assert other["train"] == found["train"][:7]
    assert other["validation"][:3] == found["validation"]
    assert other["test"] == found["test"][:2]
    assert load_examples(str(path), "test") == found["test"]


def test_bad_rows_of_a_file_are_told_once_for_all_splits(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write(path, [f"d {number}" for number in range(9)])
    path.write_text(path.read_text() + "{\n")
    told: list[str] = []
    load_splits(str(path), dict.fromkeys(SPLITS), skip_bad_rows=True, tell=told.append)
    (line,) = (line for line in told if "left out" in line)
    assert "1 bad row: line 10: not JSON" in line


def test_one_row_for_all_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "data.jsonl", ["d"] * 9)
    with pytest.raises(UserError, match=r"1 different documents: too few"):
        load_splits(str(tmp_path / "data.jsonl"), {"train": None, "validation": None})


def test_training_rows_that_are_held_out_are_left_out_with_a_word(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ["a", "b", "c"])
    write(tmp_path / "validation.jsonl", ["b"])
    told: list[str] = []
    found = load_splits(str(tmp_path), {"train": None, "validation": None}, tell=told.append)
    assert [example.document for example in found["train"]] == ["a", "c"]
    assert [example.document for example in found["validation"]] == ["b"]
    (line,) = told
    assert "1 of 3 rows of train are held out too" in line
    write(tmp_path / "validation.jsonl", ["a", "b", "c"])
    with pytest.raises(UserError, match="every row of its train split is in a held-out split too"):
        load_splits(str(tmp_path), {"train": None, "validation": None})
