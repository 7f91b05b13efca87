"""The hash chain: it holds for what was written, and breaks at the first line that was changed, moved or taken out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from specalign.chain import RESUMED, appending, continued, links, opening_link, seal
from specalign.records import GenerationRecord
from specalign.results import BenchmarkResult, ModelInfo
from specalign.run_files import RECORDS_FILE, read_records, read_result, write_result

OPENING = BenchmarkResult(
    "running", "demo", ["specalign-bench"], {"seed": 0}, {"hardware": {"cpu": "x", "busy_before": 0.1}}, "1",
    ModelInfo("target", "m", 1, 1, 1), [ModelInfo("gkd", "runs/gkd", 1, 1, 1)], 6, 0, 0,
)  # fmt: skip
N_RECORDS = 6


def record(order: int) -> GenerationRecord:
    return GenerationRecord(
        "target", f"p{order}", "", 0, order, 0.0, 0, 1.0, 0, "none", True, 0, 5, "ok", token_ids=[order],
        text='says "chain":"" and "chain":"ab"}', wall_s=0.5,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of six records, written in two sessions, the second after three."""
    write_result(tmp_path, OPENING)
    (tmp_path / RECORDS_FILE).touch()
    with appending(tmp_path) as append:
        for order in range(3):
            append(record(order))
    later = dataclasses.replace(OPENING, provenance={"hardware": {"cpu": "y"}})
    write_result(tmp_path, continued(read_result(tmp_path), later, tmp_path))
    with appending(tmp_path) as append:
        for order in range(3, N_RECORDS):
            append(record(order))
    return tmp_path


def first_broken(folder: Path) -> int | None:
    """Index of the first line whose link is not the one that it should carry."""
    pairs = links(folder / RECORDS_FILE, read_result(folder))
    return next((place for place, (carried, due) in enumerate(pairs) if carried != due), None)


def test_what_was_written_holds_and_reads_back(folder: Path) -> None:
    assert first_broken(folder) is None
    read = list(read_records(folder / RECORDS_FILE))
    assert [dataclasses.replace(one, chain="") for one in read] == [record(order) for order in range(N_RECORDS)]
    assert [stamp["after"] for stamp in read_result(folder).provenance[RESUMED]] == [3]


LineEdit = Callable[[list[str]], list[str]]


@pytest.mark.parametrize(
    ("edit", "broken"),
    [
        (lambda lines: [lines[0].replace("0.5", "0.4"), *lines[1:]], 0),
        (lambda lines: [*lines[:5], lines[5].replace("0.5", "0.4")], 5),
        (lambda lines: [*lines[:2], *lines[3:]], 2),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 0),
        (lambda lines: [*lines, lines[0]], 6),
    ],
)
def test_a_line_that_was_changed_moved_or_taken_out(folder: Path, edit: LineEdit, broken: int) -> None:
    path = folder / RECORDS_FILE
    whole = seal(path, read_result(folder))
    path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))
    assert first_broken(folder) == broken
    assert seal(path, read_result(folder)) != whole


def test_an_opening_that_was_changed(folder: Path) -> None:
    result = read_result(folder)
    busy = {**result.provenance["hardware"], "busy_during": 0.2}
    finished = dataclasses.replace(result, status="complete", provenance=result.provenance | {"hardware": busy})
    assert opening_link(finished) == opening_link(result), "what is known at the end is no part of it"
    forged = {
        "cpu": dataclasses.replace(result, provenance=result.provenance | {"hardware": {"cpu": "fast"}}),
        "config": dataclasses.replace(result, config={"seed": 1}),
        "n_requested": dataclasses.replace(result, n_requested=5),
        "drafters": dataclasses.replace(result, drafters=[dataclasses.replace(result.drafters[0], source="z")]),
    }
    for name, changed in forged.items():
        write_result(folder, changed)
        assert first_broken(folder) == 0, name
    (stamp,) = result.provenance[RESUMED]
    resumed = [stamp | {"hardware": {"cpu": "fast"}}]
    write_result(folder, dataclasses.replace(result, provenance=result.provenance | {RESUMED: resumed}))
    assert first_broken(folder) == 3


def test_the_probes_are_under_the_seal(folder: Path) -> None:
    result = read_result(folder)
    other = dataclasses.replace(result, probes_sha256="0" * 64)
    assert seal(folder / RECORDS_FILE, result) != seal(folder / RECORDS_FILE, other)
