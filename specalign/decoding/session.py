"""One model decoding one batch: feed tokens, get logits, roll back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from specalign.decoding.cache import RowCache
from specalign.decoding.stepper import Stepper
from specalign.decoding.transfer import to_device
from specalign.models.attention import attention_for
from specalign.models.masks import Masks, attention_masks
from specalign.models.properties import context_limit, decoder_layers, decoder_start_id
from specalign.models.states import States, reading


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
        pads: Sequence[int] = (),
        reads: Sequence[int] = (),
    ) -> None:
        self.stepper, self.cache, self.encoded, self.encoder_mask = stepper, cache, encoded, encoder_mask
        self.pads = list(pads)
        """Cached places before each row's own, which it does not see; empty: none."""
        self.reads = tuple(reads)
        self.states: States = {}
        """What the last call passed on of each layer in ``reads``: entry j of row i is of position
        ``states_from[i] + j``, and means nothing beyond the row's length."""
        self.states_from: list[int] = []
        self.model, self.head, self.compiled = stepper.model, stepper.head, stepper.compiled
        self.decoder = self.model.get_decoder()
        self.config = self.decoder.config
        self.context = context_limit(self.model)
        self.cross = None if encoded is None else DynamicCache()
        self.both = None if self.cross is None else EncoderDecoderCache(cache, self.cross)

    @classmethod
    def start(
        cls,
        stepper: Stepper,
        prompts: Sequence[Sequence[int]],
        n_new: int,
        written: Sequence[Sequence[int]] = (),
        reads: Sequence[int] = (),
    ) -> Session:
        """Prefill: all of each prompt but its last token, with room for ``n_new`` more.

        ``reads`` are the layers whose states it keeps, call by call (:mod:`specalign.models.states`).

        The prefill itself runs eagerly, whatever the stepper: its length differs from prompt to prompt.

        Prompts that begin another prompt of the batch (several samples of one prompt, or forks of one response)
        share its prefill, and equal prompts of an encoder-decoder model one encoder pass. Its unfinished rows must
        grow alike, as they do in plain decoding: T5 derives its relative positions from one scalar length. What
        the decoder has ``written`` after its start token may differ in length: it is padded on the left, which
        moves no relative position.
        """
        model = stepper.model
        if stepper.compiled:
            stepper.compiled.require(len(prompts), max(map(len, prompts)) + n_new, reads)
        if model.config.is_encoder_decoder:
            if reads:
                raise ValueError("the states of an encoder-decoder model cannot be read")
            return cls._start_encoder_decoder(stepper, prompts, n_new, written)
        hosts, owner = shared_prefixes(prompts)
        longest = max(map(len, prompts))
        session = cls(stepper, RowCache(len(decoder_layers(model)), len(hosts), longest), reads=reads)
        if longest > 1:
            width = max(len(host) for host in hosts) - 1
            padded = [[*host[:-1], *[0] * (width + 1 - len(host))] for host in hosts]
            session._forward(to_device(padded, model.device))
            session._saw(session.cache.states, [0] * len(hosts))
        lengths = [len(prompt) - 1 for prompt in prompts]
        session._move(owner, lengths, longest + n_new)
        return session

    @classmethod
    def _start_encoder_decoder(
        cls,
        stepper: Stepper,
        prompts: Sequence[Sequence[int]],
        n_new: int,
        written: Sequence[Sequence[int]],
    ) -> Session:
        model = stepper.model
        encoded, mask = _encode(model, prompts)
        longest = max(map(len, written), default=0)
        cache = RowCache(len(decoder_layers(model)), len(prompts), 1 + longest + n_new)
        session = cls(stepper, cache, encoded, mask, [longest - len(tokens) for tokens in written])
        if longest:
            start = decoder_start_id(model)
            read = [
                [*[0] * pad, start, *tokens][:-1] for pad, tokens in zip(session.pads, written, strict=True)
            ]
            session._forward(to_device(read, model.device))
            cache.lengths = [longest] * len(prompts)
        return session

    @property
    def lengths(self) -> list[int]:
        """Cached positions of each row."""
        pads = self.pads or [0] * len(self.cache.lengths)
        return [length - pad for length, pad in zip(self.cache.lengths, pads, strict=True)]

    def extend(self, ids: Tensor) -> Tensor:
        """Append ids [B, n] to every row; returns the logits [B, n, V] after each of them."""
        lengths = self.cache.lengths
        if self.compiled:
            logits, states = self.compiled(ids, lengths)
        else:
            logits, states = self.head(self._forward(ids)), self.cache.states
        self._saw(states, lengths)
        self.cache.lengths = [length + ids.shape[1] for length in lengths]
        return logits

    def _saw(self, states: States, lengths: Sequence[int]) -> None:
        """A CUDA graph's outputs live until the next run of any: what is read after a drafter's is copied."""
        graph = self.compiled is not None and self.model.device.type == "cuda"
        self.states = {place: states[place].clone() if graph else states[place] for place in self.reads}
        self.states_from = list(lengths)

    def rollback(self, lengths: Sequence[int]) -> None:
        """Forget everything beyond ``lengths`` (one a row, none longer than now)."""
        pads = self.pads or [0] * len(lengths)
        self.cache.lengths = [length + pad for length, pad in zip(lengths, pads, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._move(rows, [self.cache.lengths[row] for row in rows], self.cache.capacity)
        if self.encoded is not None and self.cross is not None:
            self.pads = [self.pads[row] for row in rows] if self.pads else []
            index = to_device(rows, self.encoded.device)
            self.encoded = self.encoded[index]
            self.encoder_mask = None if self.encoder_mask is None else self.encoder_mask[index]
            self.cross.batch_select_indices(index)
            self.both = EncoderDecoderCache(self.cache, self.cross)

    def _move(self, rows: Sequence[int], lengths: Sequence[int], capacity: int) -> None:
        """Let the cache be these rows of itself, in the stepper's static one where there is one."""
        if self.states:
            index = to_device(rows, self.model.device)
            self.states = {place: states[index] for place, states in self.states.items()}
            self.states_from = [self.states_from[row] for row in rows]
        if self.compiled is None:
            self.cache = self.cache.select(rows, lengths, capacity)
            return
        self.compiled.cache.fill(self.cache, rows, lengths)
        self.cache = self.compiled.cache

    def _forward(self, ids: Tensor) -> Tensor:
        reads = () if self.compiled else self.reads  # what is compiled is hooked for good
        with attention_for(self.model, masked=True), reading(self.model, reads):
            return self._hidden(ids)

    def _hidden(self, ids: Tensor) -> Tensor:
        positions = self.cache.begin(ids.shape[1], ids.device)
        if self.both is not None:
            # Equal lengths: the model's own positions are right, without padding its own mask too.
            return self.decoder(
                input_ids=ids,
                attention_mask=self._beside_padding(positions) if any(self.pads) else None,
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
            position_ids=self._within_context(positions),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def _within_context(self, positions: Tensor) -> Tensor:
        """What a row is fed beyond the context is padding of longer drafts: it needs a position, but no meaning."""
        beyond = self.context is not None and self.cache.end > self.context
        return positions.clamp(max=self.context - 1) if beyond else positions  # type: ignore[operator]

    def _beside_padding(self, positions: Tensor) -> Masks:
        """Causal, and nobody sees the places before a row's own; these see themselves, so that they stay finite."""
        keys = torch.arange(self.cache.end, device=positions.device).unsqueeze(0)
        pads = to_device(self.pads, positions.device)[:, None, None]
        places, key = positions.unsqueeze(2), keys.unsqueeze(1)
        visible = ((key <= places) & (key >= pads)) | (key == places)
        return attention_masks(self.config, visible, positions, keys, self.model.dtype)


def _encode(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """The encoder's states [B, L, d] of each prompt, equal ones encoded once, and the mask [B, L] of their tokens.

    No mask where there is no padding.
    """
    different = list(dict.fromkeys(map(tuple, prompts)))
    width = max(map(len, different))
    padded = [[*prompt, *[0] * (width - len(prompt))] for prompt in different]
    mask = None
    if min(map(len, different)) < width:
        kept = [[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in different]
        mask = to_device(kept, model.device)
    ids = to_device(padded, model.device)
    states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    if len(different) == len(prompts):
        return states, mask
    place = {prompt: index for index, prompt in enumerate(different)}
    owner = to_device([place[tuple(prompt)] for prompt in prompts], model.device)
    return states[owner], None if mask is None else mask[owner]


def decoder_sequences(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]] = ()
) -> list[list[int]]:
    """What the decoder has read before the first new token."""
    if model.config.is_encoder_decoder:
        start = decoder_start_id(model)
        return [[start, *tokens] for tokens in written or [()] * len(prompts)]
    return [list(prompt) for prompt in prompts]


def rooms(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[int] | None:
    """New tokens that fit into the model's context after each sequence; None: no limit."""
    limit = context_limit(model)
    return None if limit is None else [limit - len(sequence) for sequence in sequences]


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
