"""Prompt lookup copies what it has seen; divergences are told apart; caches roll back by subtraction."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from specalign.decoding import divergence
from specalign.decoding.cache import RowCache
from specalign.decoding.copying import lookup
from specalign.decoding.divergence import classify_divergence, first_difference
from specalign.decoding.drafters import ModelDrafter
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session, shared_prefixes
from specalign.decoding.stepper import Stepper, make_stepper
from specalign.models.heads import head_of

Build = Callable[..., PreTrainedModel]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ([1, 2, 3, 9, 1, 2, 3], [9, 1, 2, 3]),  # the longest suffix wins
        ([2, 7, 1, 2, 8, 5, 2], [8, 5, 2]),  # of equal ones the latest
        ([1, 2, 3, 4], []),  # nothing seen before
        ([5, 5, 5], [5]),  # an occurrence may overlap the suffix
        ([4], []),
    ],
)
def test_lookup(text: list[int], found: list[int]) -> None:
    assert lookup(text, 3) == found


def test_lookup_is_bounded_by_its_longest_ngram() -> None:
    assert lookup([1, 2, 8, 3, 2, 9, 1, 2], max_ngram=2) == [8, 3, 2, 9, 1, 2]
    assert lookup([1, 2, 8, 3, 2, 9, 1, 2], max_ngram=1) == [9, 1, 2]


@pytest.mark.parametrize(
    ("ours", "theirs", "place"), [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([], [4], 0)]
)
def test_first_difference(ours: list[int], theirs: list[int], place: int | None) -> None:
    assert first_difference(ours, theirs) == place


def test_a_tie_is_told_from_a_defect(build: Build, next_logits: Callable[..., torch.Tensor]) -> None:
    target, prompt = build("llama"), [5, 9, 31, 7]
    logits = next_logits(target, prompt, [])
    best, second = logits.topk(2).indices.tolist()
    gap = float(logits[best] - logits[second])
    assert classify_divergence(target, prompt, [best], [best]) == "none"
    assert classify_divergence(target, prompt, [best], [second], tolerance=1.01 * gap) == "tie"
    assert classify_divergence(target, prompt, [best], [second], tolerance=0.99 * gap) == "unexplained"
    assert classify_divergence(target, prompt, [best], [best, second], tolerance=1e9) == "unexplained"


def test_the_calls_of_decoding_are_the_whole_call(build: Build, family: str) -> None:
    """What the noise is measured by: in float64 no shape of the calls moves a logit."""
    target, prompt, text = build(family), [5, 9, 31, 7], [3, 8, 20, 4, 4]
    for written in ([], text):
        whole = divergence._next_logits(target, prompt, written, 0)
        for n in (1, 3, 8):
            torch.testing.assert_close(divergence._cached_logits(target, prompt, written, n), whole)
            assert divergence._cached_logits(target, [5], written, n).shape == whole.shape


@pytest.mark.parametrize(("n_noisy", "expected"), [(1, "numeric"), (4, "numeric"), (2, "unexplained")])
def test_the_noise_of_short_cached_calls_is_noise(
    build: Build, next_logits: Callable[..., torch.Tensor], n_noisy: int, expected: str
) -> None:
    """A model whose hidden states move in calls of ``n_noisy`` tokens, as kernels for few rows do in half precision;
    gamma is 3, so that decoding makes calls of 1 and 4 tokens."""
    target, prompt = copy.deepcopy(build("llama")), [5, 9, 31, 7]
    text = [3, 8, 20, 4, 4, 6, 9]
    logits = next_logits(target, prompt, text)
    best, second = logits.topk(2).indices.tolist()
    weight = target.get_output_embeddings().weight
    push = (
        (weight[second] - weight[best])
        * (logits[best] - logits[second])
        / (weight[second] - weight[best]).norm() ** 2
    )

    def move(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output + push if output.shape[1] == n_noisy else output

    target.get_decoder().norm.register_forward_hook(move)
    outputs = [*text, best], [*text, second]
    assert classify_divergence(target, prompt, *outputs, gamma=3) == expected


@pytest.mark.parametrize(("moved", "expected"), [(0.02, "numeric"), (0.005, "unexplained")])
def test_a_gap_within_what_the_shape_of_a_call_moves_is_numeric(
    build: Build, monkeypatch: pytest.MonkeyPatch, moved: float, expected: str
) -> None:
    """Logits 0.03 apart, in a model whose logits move by ``moved`` with the number of tokens after them."""
    logits = torch.tensor([1.0, 0.97, 0.0])

    def noisy(target: PreTrainedModel, prompt: object, text: object, padding: int) -> torch.Tensor:
        return logits + moved * (padding > 1)

    monkeypatch.setattr(divergence, "_next_logits", noisy)
    monkeypatch.setattr(divergence, "_cached_logits", lambda *call: logits)
    assert classify_divergence(build("llama"), [3], [0], [1]) == expected


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5"])
def test_tokens_after_a_text_do_not_move_its_logits_in_float64(build: Build, family: str) -> None:
    """So that what moves them in other precisions is rounding."""
    target = build(family)
    plain, padded = (divergence._next_logits(target, [5, 9, 31], [7, 7], n) for n in (0, 12))
    assert torch.allclose(plain, padded, atol=1e-6)


def test_shared_prefixes_keep_the_longest_of_each_kind() -> None:
    hosts, owner = shared_prefixes([[1, 2], [1, 2, 3], [4], [1, 2, 3], [1, 3]])
    assert sorted(hosts) == [[1, 2, 3], [1, 3], [4]]
    assert [hosts[number][:2] for number in owner] == [[1, 2], [1, 2], [4], [1, 2], [1, 3]]


def test_logits_after_a_rollback_are_those_of_the_shorter_text(build: Build, family: str) -> None:
    """Rows of different lengths, rolled back by different amounts; encoder-decoder models have one row."""
    model = build(family)
    prompts = [[5, 9, 31, 7, 8]] if family == "t5" else [[5, 9, 31, 7, 8], [3, 8, 20]]
    with torch.inference_mode():
        session = Session.start(Stepper(model, head_of(model)), prompts, 12)
        before = list(session.lengths)
        ids = torch.tensor([[4, 6, 11, 2]] * len(prompts))
        first = session.extend(ids)
        session.rollback([length + keep for length, keep in zip(before, (3, 1), strict=False)])
        again = session.extend(torch.tensor([[2], [6]][: len(prompts)]))
    torch.testing.assert_close(again[0, 0], first[0, 3], rtol=0, atol=1e-12)
    if len(prompts) > 1:
        torch.testing.assert_close(again[1, 0], first[1, 1], rtol=0, atol=1e-12)


def test_the_cache_refuses_what_it_cannot_hold() -> None:
    cache = RowCache(n_layers=1, n_rows=1, capacity=3)
    cache.begin(3, torch.device("cpu"))
    with pytest.raises(ValueError, match="holds 3 positions, 4 are needed"):
        cache.begin(4, torch.device("cpu"))


@pytest.mark.parametrize("n_missed", [1, 3, 7, 20])
def test_a_row_may_lack_more_tokens_than_another_has(build: Build, n_missed: int) -> None:
    """A drafter that another one stood in for: rows grow by different numbers before it drafts again."""
    model, prompts = build("llama"), [[5, 9, 31, 7, 7, 12], [3, 8]]
    grown = [[*prompts[0], *range(3, 3 + n_missed)], [*prompts[1], 4]]

    def draft(rows: list[list[int]], before: list[list[int]] | None = None) -> torch.Tensor:
        with torch.inference_mode():
            target = Session.start(make_stepper(model), rows, 40)
            drafting = ModelDrafter(model).start(before or rows, 40, Sampling(0.0), target)
            return drafting.draft(rows, [3] * len(rows), None).ids

    assert torch.equal(draft(grown, prompts), draft(grown))
