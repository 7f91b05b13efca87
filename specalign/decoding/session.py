"""One model decoding one batch: feed tokens, get logits, roll back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from specalign.decoding.cache import RowCache
from specalign.decoding.stepper import Stepper
from specalign.models.masks import attention_masks
from specalign.models.properties import context_limit, decoder_layers, decoder_start_id


class Session:
    """A model, its head and the cached rows of one request.

    ``sequences`` below are what the decoder reads: the prompt and what follows (decoder-only), or the decoder's
    start token and what follows (encoder-decoder, whose encoder reads the prompt once, in :meth:`start`).
    """

    def __init__(
        self,
        stepper: Stepper,
        cache: RowCache,
        encoded: Tensor | None = None,
        encoder_mask: Tensor | None = None,
    ) -> None:
        self.stepper, self.cache, self.encoded, self.encoder_mask = stepper, cache, encoded, encoder_mask
        self.model, self.head, self.compiled = stepper.model, stepper.head, stepper.compiled
        self.decoder = self.model.get_decoder()
        self.config = self.decoder.config
        self.cross = None if encoded is None else DynamicCache()
        self.both = None if self.cross is None else EncoderDecoderCache(cache, self.cross)

    @classmethod
    def start(cls, stepper: Stepper, prompts: Sequence[Sequence[int]], n_new: int) -> Session:
        """Prefill: all of each prompt but its last token, with room for ``n_new`` more.

        The prefill itself runs eagerly, whatever the stepper: its length differs from prompt to prompt.

        Prompts that begin another prompt of the batch (several samples of one prompt, or forks of one response)
        share its prefill. The unfinished rows of an encoder-decoder model must stay equally long, as they do in
        plain decoding: T5 derives its relative positions from one scalar length, so ragged rows have no exact
        batched form.
        """
        model = stepper.model
        if stepper.compiled:
            stepper.compiled.require(len(prompts), max(map(len, prompts)) + n_new)
        if model.config.is_encoder_decoder:
            return cls._start_encoder_decoder(stepper, prompts, n_new)
        hosts, owner = shared_prefixes(prompts)
        longest = max(map(len, prompts))
        session = cls(stepper, RowCache(len(decoder_layers(model)), len(hosts), longest))
        if longest > 1:
            width = max(len(host) for host in hosts) - 1
            padded = [[*host[:-1], *[0] * (width + 1 - len(host))] for host in hosts]
            session._forward(torch.tensor(padded, device=model.device))
        lengths = [len(prompt) - 1 for prompt in prompts]
        session._move(owner, lengths, longest + n_new)
        return session

    @classmethod
    def _start_encoder_decoder(cls, stepper: Stepper, prompts: Sequence[Sequence[int]], n_new: int) -> Session:
        model = stepper.model
        width = max(map(len, prompts))
        padded = [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts]
        mask = None
        if min(map(len, prompts)) < width:
            kept = [[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts]
            mask = torch.tensor(kept, device=model.device)
        ids = torch.tensor(padded, device=model.device)
        encoded = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        return cls(stepper, RowCache(len(decoder_layers(model)), len(prompts), 1 + n_new), encoded, mask)

    @property
    def lengths(self) -> list[int]:
        """Cached positions of each row."""
        return self.cache.lengths

    def extend(self, ids: Tensor) -> Tensor:
        """Append ids [B, n] to every row; returns the logits [B, n, V] after each of them."""
        lengths = self.cache.lengths
        logits = self.compiled(ids, lengths) if self.compiled else self.head(self._forward(ids))
        self.cache.lengths = [length + ids.shape[1] for length in lengths]
        return logits

    def rollback(self, lengths: Sequence[int]) -> None:
        """Forget everything beyond ``lengths`` (one a row, none longer than now)."""
        self.cache.lengths = list(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._move(rows, [self.cache.lengths[row] for row in rows], self.cache.capacity)
        if self.encoded is not None and self.cross is not None:
            index = torch.tensor(rows, device=self.encoded.device)
            self.encoded = self.encoded[index]
            self.encoder_mask = None if self.encoder_mask is None else self.encoder_mask[index]
            self.cross.batch_select_indices(index)
            self.both = EncoderDecoderCache(self.cache, self.cross)

    def _move(self, rows: Sequence[int], lengths: Sequence[int], capacity: int) -> None:
        """Let the cache be these rows of itself, in the stepper's static one where there is one."""
        if self.compiled is None:
            self.cache = self.cache.select(rows, lengths, capacity)
            return
        self.compiled.cache.fill(self.cache, rows, lengths)
        self.cache = self.compiled.cache

    def _forward(self, ids: Tensor) -> Tensor:
        positions = self.cache.begin(ids.shape[1], ids.device)
        if self.both is not None:  # equal lengths: the model's own causal mask and positions are right
            return self.decoder(
                input_ids=ids,
                past_key_values=self.both,
                encoder_hidden_states=self.encoded,
                encoder_attention_mask=self.encoder_mask,
                use_cache=True,
            ).last_hidden_state
        keys = torch.arange(self.cache.end, device=ids.device).unsqueeze(0)
        causal = keys.unsqueeze(1) <= positions.unsqueeze(2)
        masks = attention_masks(self.config, causal, positions, keys, self.model.dtype)
        return self.decoder(
            input_ids=ids,
            attention_mask=masks,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state


def decoder_sequences(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """What the decoder has read before the first new token."""
    if model.config.is_encoder_decoder:
        return [[decoder_start_id(model)] for _ in prompts]
    return [list(prompt) for prompt in prompts]


def room(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> int | None:
    """New tokens that fit into the model's context after the longest sequence; None: no limit."""
    limit = context_limit(model)
    return None if limit is None else limit - max(map(len, sequences))


def shared_prefixes(prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """(hosts, owner): the prompts that begin no other one, and for each prompt the host that it begins."""
    hosts: list[list[int]] = []
    owner = [0] * len(prompts)
    for index in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        prompt = list(prompts[index])
        for number, host in enumerate(hosts):
            if host[: len(prompt)] == prompt:
                owner[index] = number
                break
        else:
            owner[index] = len(hosts)
            hosts.append(prompt)
    return hosts, owner
