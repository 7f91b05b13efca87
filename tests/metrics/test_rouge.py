"""ROUGE F1 on sentences small enough to count by hand."""

import pytest

from specalign.metrics.rouge import mean_rouge


def test_f1_by_hand() -> None:
    """Output "the cat sat" against "the cat ate fish": 2 of 3 and 2 of 4 words, 1 of 2 and 1 of 3 pairs."""
    found = mean_rouge(["the cat sat"], ["the cat ate fish"], ["a"])
    assert found
    assert found.rouge1.value == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert found.rouge2.value == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert found.rougeL.value == found.rouge1.value


def test_equal_texts_score_one_and_empty_outputs_zero() -> None:
    found = mean_rouge(["a cat sat", ""], ["a cat sat", "a dog ran"], ["a", "b"])
    assert found
    assert found.rouge1.value == found.rouge2.value == found.rougeL.value == 0.5


def test_lsum_matches_sentence_by_sentence() -> None:
    """Swapped sentences: one longest common subsequence holds 3 of 6 words, sentence by sentence all match."""
    found = mean_rouge(["the dog ran. a cat sat."], ["a cat sat. the dog ran."], ["a"])
    assert found
    assert found.rougeLsum
    assert found.rougeL.value == pytest.approx(0.5)
    assert found.rougeLsum.value == 1


def test_prompts_without_a_reference_are_left_out() -> None:
    assert mean_rouge(["words"], [" "], ["a"]) is None
    some = mean_rouge(["a cat sat", "words"], ["a cat sat", ""], ["a", "b"])
    assert some
    assert some.rouge2.value == 1


def test_repeats_of_one_prompt_are_one_sample() -> None:
    """Two prompts' worth of outputs repeated give no more certainty than the two prompts."""
    once = mean_rouge(["a b c", "x"], ["a b c", "y"], ["a", "b"])
    thrice = mean_rouge(["a b c", "x"] * 3, ["a b c", "y"] * 3, ["a", "b"] * 3)
    assert once == thrice
