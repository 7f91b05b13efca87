"""Copying: the index finds what a search finds, follows what was seen most often, and costs O(1) a token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from specalign.decoding import WITHOUT_MODEL, DraftCosts, PromptLookup, SuffixIndex, SuffixLookup, generate
from specalign.decoding.copying import BREAK, SEPARATOR, _SuffixCopier, confidence
from specalign.decoding.draft_length import BINS
from specalign.decoding.suffix_index import COUNTED, Match
from specalign.results import LOOKUPS

Build = Callable[..., PreTrainedModel]
TEXTS = st.integers(1, 5).flatmap(lambda n_ids: st.lists(st.integers(0, n_ids - 1), min_size=1, max_size=40))


def occurs(text: list[int], wanted: list[int]) -> list[int]:
    """Where ``wanted`` ends in ``text``."""
    return [end for end in range(len(wanted), len(text) + 1) if text[end - len(wanted) : end] == wanted]


def longest_match(text: list[int], within: list[int]) -> int:
    """Tokens of the longest suffix of ``text`` that occurs in ``within``."""
    return max((n for n in range(1, len(text) + 1) if occurs(within, text[-n:])), default=0)


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_the_match_is_the_longest_suffix_that_ended_earlier(text: list[int]) -> None:
    assert SuffixIndex(text).match.length == longest_match(text, text[:-1])


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_the_continuation_was_seen_most_often_and_of_these_last(text: list[int]) -> None:
    index = SuffixIndex(text)
    match = index.match
    copied = list(zip(index.continuation(match), range(5), strict=False))
    if not match.length:
        assert not copied
        return
    (token, context), _ = copied[0]
    ends = occurs(text[:-1], text[-match.length :])
    times = Counter(text[end] for end in ends)
    often = [text[end] for end in ends if times[text[end]] == max(times.values())]
    assert (token, context) == (often[-1], match.length)


@settings(deadline=None, max_examples=200)
@given(TEXTS, TEXTS)
def test_another_texts_end_is_found_as_it_grows(text: list[int], other: list[int]) -> None:
    index, match = SuffixIndex(text), Match(0, 0)
    for n, token in enumerate(other, 1):
        match = index.advance(match, token)
        assert match.length == longest_match(other[:n], text)


def test_a_text_that_repeats_itself_goes_on_repeating() -> None:
    index = SuffixIndex([7, 1, 2, 3, 1, 2, 3])
    assert [token for (token, _), _ in zip(index.continuation(index.match), range(7), strict=False)] == [
        1, 2, 3, 1, 2, 3, 1,
    ]  # fmt: skip


def test_an_index_has_at_most_two_states_a_token_and_as_many_steps() -> None:
    """Counted, not timed: links followed while appending do not grow with the text."""
    text = [token % 37 * (token % 11) for token in range(4000)]
    index = SuffixIndex(text)
    assert len(index._next) <= 2 * len(text)
    assert sum(map(len, index._next)) <= 3 * len(text)


def test_trust_grows_with_the_match() -> None:
    """And each class of matches learns apart from the others."""
    values = [confidence(length) for length in (1, 2, 3, 5)]
    assert values == sorted(values)
    assert len({int(value * BINS) for value in values}) == len(values)
    assert confidence(4) == confidence(3)
    assert confidence(100) == confidence(5)


def test_copies_come_from_a_corpus_where_it_matches_longer(build: Build) -> None:
    """A target whose own output is the corpus accepts what it copies from it."""
    target, prompt = build("llama"), [5, 9, 31, 7]
    plain = generate(target, None, prompt, max_new_tokens=16, eos=()).token_ids[0]
    free = DraftCosts(0.0, (1.0, 1.01))
    corpus = SuffixIndex([*prompt, *plain])
    without, beside = (
        generate(target, SuffixLookup(free, corpora), prompt, max_new_tokens=16, eos=())
        for corpora in ((), (SuffixIndex([1, 2, 3]), corpus))
    )
    assert without.token_ids[0] == beside.token_ids[0] == plain
    assert len(beside.steps[0]) < len(without.steps[0])
    assert len(corpus._next) == len(SuffixIndex([*prompt, *plain])._next), (
        "a request leaves the corpus as it was"
    )


def test_no_copy_goes_over_the_break_between_texts() -> None:
    corpus = SuffixIndex([5, 6, 7, BREAK, 5, 9, 8, BREAK])
    copier = _SuffixCopier([1, 5, 6], (corpus,))
    assert copier([1, 5, 6], 9)[0] == [7]
    assert _SuffixCopier([SEPARATOR, 4], (corpus,))([SEPARATOR, 4], 9)[0] == []


def test_of_equal_matches_the_requests_own_is_copied_else_the_first_corpus() -> None:
    corpora = SuffixIndex([5, 6, 7, BREAK]), SuffixIndex([5, 6, 8, BREAK])
    assert _SuffixCopier([5, 6], corpora)([5, 6], 1)[0] == [7]
    assert _SuffixCopier([5, 6, 9, 5, 6], corpora)([5, 6, 9, 5, 6], 1)[0] == [9]
    assert _SuffixCopier([4, 5, 6], (corpora[0], SuffixIndex([4, 5, 6, 8])))([4, 5, 6], 1)[0] == [8]


class Counted(list[int]):
    """Counts how often it is read."""

    n_read = 0

    def __getitem__(self, place: Any) -> Any:
        Counted.n_read += 1
        return super().__getitem__(place)


def reads(n_corpus: int, n_text: int, n_rows: int, n_tokens: int = 200) -> float:
    """Links followed a token of each row, of requests with so long a corpus and so long a text already."""
    words = [token * token % 61 for token in range(max(n_corpus, n_text) + n_tokens)]
    corpus = SuffixIndex([*words[:n_corpus], BREAK])
    copiers = [_SuffixCopier(words[row : n_text + row], (corpus,)) for row in range(n_rows)]
    for index in (corpus, *(copier.index for copier in copiers)):
        index._link = Counted(index._link)
    Counted.n_read = 0
    for n in range(1, n_tokens + 1):
        for row, copier in enumerate(copiers):
            copier(words[row : n_text + n + row], 4)
    return Counted.n_read / (n_tokens * n_rows)


def test_a_token_costs_the_same_whatever_the_length_of_text_and_corpus_in_a_batch_too() -> None:
    """Steps, not seconds, of a text that repeats itself, which costs the most: COUNTED links twice, and few more."""
    found = [reads(n_corpus, n_text, n_rows) for n_corpus, n_text, n_rows in SIZES]
    assert max(found) <= 2 * COUNTED + 8
    assert max(found) <= 1.1 * min(found)


SIZES = ((5_000, 5_000, 1), (100_000, 5_000, 1), (5_000, 100_000, 1), (5_000, 5_000, 4))


def test_an_encoders_prompt_is_copied_from_too(build: Build) -> None:
    target = build("t5")
    prompt = [5, 9, 31, 7, 7, 12, 9]
    plain = generate(target, None, prompt, max_new_tokens=12, eos=()).token_ids[0]
    assert generate(target, SuffixLookup(), [*prompt], max_new_tokens=12, eos=()).token_ids[0] == plain


def test_a_dear_verification_ends_copies_early(build: Build) -> None:
    target, prompt = build("llama"), [5, 9, 31, 7] * 6

    def n_drafted(costs: DraftCosts) -> int:
        (steps,) = generate(target, SuffixLookup(costs), prompt, gamma=8, max_new_tokens=24, eos=()).steps
        return sum(step.n_drafted for step in steps)

    dear = n_drafted(DraftCosts(0.0, (1.0, 4.0)))
    cheap = n_drafted(DraftCosts(0.0, (1.0, 1.01)))
    assert dear < cheap


def test_prompt_lookup_keeps_its_definition_without_costs(build: Build) -> None:
    """As many tokens as were asked for, however bad they are."""
    target, prompt = build("llama"), [5, 9, 31, 7, 5, 9]
    (steps,) = generate(target, PromptLookup(), prompt, gamma=3, max_new_tokens=8, eos=()).steps
    assert steps[0].n_drafted == 3
    (fewer,) = generate(
        target, PromptLookup(adaptive=DraftCosts(0.0, (1.0, 4.0))), prompt, gamma=3, max_new_tokens=8, eos=()
    ).steps
    assert fewer[0].n_drafted == 0


def test_rows_keep_their_own_texts(build: Build) -> None:
    target = build("llama")
    prompts = [[5, 9, 31, 7] * 3, [3, 8, 20], [11, 4] * 5]
    batch = generate(target, SuffixLookup(), prompts, gamma=4, max_new_tokens=12, eos=())
    alone = [generate(target, SuffixLookup(), prompt, gamma=4, max_new_tokens=12, eos=()) for prompt in prompts]
    assert batch.token_ids == [result.token_ids[0] for result in alone]
    counts = [[step.n_drafted for step in steps] for steps in batch.steps]
    assert counts == [[step.n_drafted for step in result.steps[0]] for result in alone]


def test_ids_below_zero_are_never_proposed(build: Build) -> None:
    target = build("t5")
    result = generate(target, SuffixLookup(), [[4, 4, 4]], gamma=6, max_new_tokens=12, eos=())
    assert all(token >= 0 for token in result.token_ids[0])
    assert torch.tensor(result.token_ids).shape == (1, 12)


def test_files_name_the_drafters_without_a_model_that_there_are() -> None:
    """The names are known without torch too: to the command line and to whoever reads results."""
    assert tuple(WITHOUT_MODEL) == LOOKUPS
    assert {drafter.kind for drafter in WITHOUT_MODEL.values()} == {"lookup"}
