"""Answers of GSM8K's form."""

from decimal import Decimal

import pytest

from specalign.metrics.accuracy import accuracy, last_number, reference_answer


@pytest.mark.parametrize(
    ("text", "number"),
    [("so 3 + 4 = 7 apples.", "7"), ("$1,234.50", "1234.5"), ("it is -2", "-2"), ("#### 18", "18")],
)
def test_the_last_number_counts(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


def test_only_a_marked_reference_has_an_answer() -> None:
    assert reference_answer("2 + 2 = 4\n#### 4") == 4
    assert reference_answer("published in 1984") is None
    assert reference_answer("#### none") is None
    assert last_number("no number") is None


def test_accuracy_by_hand() -> None:
    """Right, wrong, without a number, and one whose reference asks for none."""
    outputs = ["thus 4.0", "thus 5", "I do not know", "12"]
    found = accuracy(outputs, ["#### 4", "#### 4", "#### 1,000", "a summary"], ["a", "b", "c", "d"])
    assert found
    assert found.value == pytest.approx(1 / 3)
    assert accuracy(["1"], ["a summary"], ["a"]) is None
