"""Which token becomes a mask, and what the model and its config are afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from specalign.models.heads import head_of
from specalign.models.mask_token import Masks, give_masks, masks_of, spare_id
from specalign.models.tiny import make_model

WORDS = [f"w{i}" for i in range(34)]


def tokenizer_of(special: Sequence[str], words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Ids: <pad>, <s>, </s>, the words, then the special tokens, of which <turn> is in the chat template."""
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    raw.add_special_tokens([AddedToken(token, special=True) for token in special])
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="w0"
    )
    made.chat_template = "<turn>{{ messages[0]['content'] }}"
    return made


@pytest.mark.parametrize(
    ("special", "n_rows", "expected"),
    [
        ((), 40, 37),  # the first row that no token has
        (("<turn>", "<|reserved_7|>", "<idle>"), 40, 38),  # named as spare, before what merely is idle
        (("<turn>", "<file>", "<idle>"), 40, 39),  # the last special token without a role
        (("<turn>",), 38, None),
        (("<idle>",), 38, 37),
    ],
)
def test_the_mask_is_a_token_that_text_never_has(
    special: Sequence[str], n_rows: int, expected: int | None
) -> None:
    assert spare_id(tokenizer_of(special), n_rows) == expected


def test_words_that_only_sound_spare_are_not() -> None:
    assert spare_id(tokenizer_of((), [*WORDS, "unused", "reserved"]), 39) is None


def test_its_embedding_starts_as_the_mean_and_its_config_says_so(tmp_path: object) -> None:
    model = make_model("llama")
    before = next(model.get_input_embeddings().parameters()).detach().clone()
    assert give_masks(model, tokenizer_of(()), 5) == masks_of(model.config) == Masks(37, 5)
    after = next(model.get_input_embeddings().parameters())
    assert torch.allclose(after[37], before.mean(0))
    assert after[:37].equal(before[:37])
    model.save_pretrained(str(tmp_path))
    assert masks_of(AutoModelForCausalLM.from_pretrained(str(tmp_path)).config) == Masks(37, 5)


def test_a_row_is_added_where_every_token_is_used() -> None:
    model = make_model("llama", vocab=37)
    head = head_of(model).weight.detach().clone()
    assert give_masks(model, tokenizer_of(()), 4) == Masks(37, 4)
    embedding = next(model.get_input_embeddings().parameters())
    assert embedding.shape[0] == model.config.vocab_size == 38
    assert torch.allclose(embedding[37], embedding[:37].mean(0))
    assert head_of(model).weight[:37].equal(head)


def test_a_model_that_has_a_mask_token_keeps_it() -> None:
    model = make_model("llama")
    model.config.pard_token = 12
    before = next(model.get_input_embeddings().parameters()).detach().clone()
    assert give_masks(model, tokenizer_of(()), 6) == Masks(12, 6)
    assert next(model.get_input_embeddings().parameters()).equal(before)
