"""The mask token of a model that drafts in parallel (PARD, arXiv:2504.18583), and where its config says so."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from specalign.errors import UserError

MOST = 8
"""Tokens of a draft where a config has a mask token but does not say: what PARD's recipe trains for."""
SPARE = re.compile(r"reserved|unused", re.IGNORECASE)
"""Names of tokens that a tokenizer keeps for such uses."""


@dataclass(frozen=True)
class Masks:
    """How a model drafts in parallel."""

    token: int
    """Its mask token's id, a row of its embedding."""
    most: int
    """Most tokens of a draft: K, of which K - 1 are drafted from masks."""


def masks_of(config: PreTrainedConfig) -> Masks | None:
    """The masks that a config names by ``pard_token`` (as vLLM reads it) and ``pard_k``; None: one token a call.

    Raises UserError for a token that is no row of the embedding, and for a K below 1.
    """
    token = getattr(config, "pard_token", None)
    if token is None:
        return None
    masks = Masks(token, getattr(config, "pard_k", MOST))
    n_rows = config.get_text_config().vocab_size
    if type(token) is not int or not 0 <= token < n_rows:
        raise UserError(f"pard_token = {token!r} is no id of {_named(config)}, which has {n_rows}")
    if type(masks.most) is not int or masks.most < 1:
        raise UserError(f"pard_k of {_named(config)} must be a whole number of at least 1, not {masks.most!r}")
    return masks


def _named(config: PreTrainedConfig) -> str:
    return f"model {config.name_or_path!r}" if config.name_or_path else "the model"


@torch.no_grad()
def give_masks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, most: int) -> Masks:
    """Let ``model`` have a mask token and draft up to ``most`` tokens in parallel; its config says so from now on.

    A model that has a mask token keeps it. Otherwise it is a row that text never uses (:func:`spare_id`), or a new one
    at the end of the embedding, and starts as the mean of all rows.
    """
    found = masks_of(model.config)
    token = found.token if found else _given_row(model, tokenizer)
    model.config.pard_token, model.config.pard_k = token, most
    return Masks(token, most)


def spare_id(tokenizer: PreTrainedTokenizerBase, n_rows: int) -> int | None:
    """An id among ``n_rows`` that no text is encoded to; None where there is none.

    The first without a token (Qwen's padding), else the last token named as reserved or unused (Llama 3, Gemma), else
    the last special token that has no role and is not in the chat template (SmolLM2's ``<empty_output>``).
    """
    vocabulary = tokenizer.get_vocab()
    free = set(range(n_rows)) - set(vocabulary.values())
    if free:
        return min(free)
    special = {entry.content for entry in tokenizer.added_tokens_decoder.values() if entry.special}
    named = {token for token in vocabulary if SPARE.search(token) and token.startswith(("<", "["))}
    template, roles = str(tokenizer.chat_template or ""), set(tokenizer.all_special_tokens)
    idle = {token for token in special - roles if token not in template}
    found = [vocabulary[token] for token in named] or [vocabulary[token] for token in idle]
    return max(found, default=None)


def _given_row(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    n_rows = model.config.get_text_config().vocab_size
    token = spare_id(tokenizer, n_rows)
    if token is None:
        model.resize_token_embeddings(n_rows + 1, mean_resizing=False)
        token = n_rows
    weight = next(model.get_input_embeddings().parameters())
    weight[token] = weight[:n_rows].mean(0)
    return token
