"""Curves are told apart by the shortest ends of their folders' paths."""

from pathlib import Path

import pytest

from specalign.training.plot import labels


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (["/a/gkd"], ["gkd"]),
        (["/a/gkd", "/a/sft"], ["gkd", "sft"]),
        (["/a/gkd/seed-0", "/a/sft/seed-0"], ["gkd/seed-0", "sft/seed-0"]),
        (["/a/gkd/seed-0", "/b/gkd/seed-0", "/b/gkd/seed-1"], ["a/gkd/seed-0", "b/gkd/seed-0", "b/gkd/seed-1"]),
        (["/a/gkd", "/a/gkd"], ["gkd"]),
        (["/gkd", "/a/gkd"], ["//gkd", "a/gkd"]),
    ],
)
def test_every_run_has_a_label_of_its_own(runs: list[str], expected: list[str]) -> None:
    assert list(labels([Path(run) for run in runs])) == expected
