"""What can be known of a model, and of a pair, from configs and tokenizers alone: no weights are read."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from dataclasses import dataclass

import psutil
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from specalign.errors import UserError
from specalign.models.load import Attention, empty_model, load_tokenizer, require_same_tokenizer, resolve_model
from specalign.models.properties import (
    context_limit,
    decoder_layers,
    decoder_start_id,
    eos_ids,
    n_parameters,
    position_scaling,
)
from specalign.models.vocabulary import n_ids
from specalign.preflight import Caution


@dataclass(frozen=True)
class Outline:
    """A model without weights, and its tokenizer."""

    name: str
    model: PreTrainedModel
    """On the meta device."""
    tokenizer: PreTrainedTokenizerBase

    @property
    def width(self) -> int:
        """Rows of its embedding and head."""
        return self.model.config.get_text_config().vocab_size

    def token(self, id_: int) -> str:
        """An id and its token."""
        return f"{id_} {self.tokenizer.convert_ids_to_tokens(id_)!r}"

    @property
    def kind(self) -> str:
        """Encoder-decoder or decoder-only."""
        return "encoder-decoder" if self.model.config.is_encoder_decoder else "decoder-only"


def outline(name: str, *, trust_remote_code: bool = False) -> Outline:
    """Read config, generation config and tokenizer of a model by name; raises UserError as loading it would."""
    model = empty_model(name, trust_remote_code=trust_remote_code)
    with suppress(OSError):  # where it has none, what its config says holds
        model.generation_config = GenerationConfig.from_pretrained(resolve_model(name))
    return Outline(name, model, load_tokenizer(name, trust_remote_code=trust_remote_code))


def describe(model: Outline) -> str:
    """Class, kind and size, and how much of that is an output head that is not the embedding."""
    n = n_parameters(model.model)
    layers = len(decoder_layers(model.model))
    head, embedding = model.model.get_output_embeddings(), model.model.get_input_embeddings()
    apart = head is not None and head.weight is not embedding.weight
    own = f" ({head.weight.numel() / 1e6:,.1f} M of them a head apart from the embedding)" if apart else ""
    return (
        f"{type(model.model).__name__}, {model.kind}, {n / 1e6:,.1f} M parameters{own}, {layers} decoder layers"
    )


def check_attention(model: Outline, asked: Attention, device: torch.device) -> str | Caution:
    """The attention implementation that the architecture will get."""
    kind = type(model.model)
    supported = {
        "eager": True,
        "sdpa": getattr(kind, "_supports_sdpa", False),
        "flash_attention_2": getattr(kind, "_supports_flash_attn", False),
    }
    names = [name for name, has in supported.items() if has]
    if asked == "flash_attention_2" and (missing := flash_needs(device)):
        return Caution(f"flash_attention_2 needs {missing}; {_default_attention(model)} is used instead")
    if asked != "auto" and asked not in names:
        raise UserError(
            f"{kind.__name__} does not support attn = {asked!r}; use auto, or one of: {', '.join(names)}"
        )
    if asked == "flash_attention_2":
        return Caution(
            "flash_attention_2 where whole texts are scored in half precision; decoding runs by sdpa"
        )
    return f"{_default_attention(model) if asked == 'auto' else asked} (supported: {', '.join(names)})"


def flash_needs(device: torch.device) -> str:
    """What FlashAttention 2 misses on this machine; empty: nothing."""
    if device.type != "cuda":
        return "a CUDA device"
    return "" if importlib.util.find_spec("flash_attn") else "the package flash-attn"


def check_end(model: Outline, end: int | None) -> str | Caution:
    """The tokens that begin and end a text; ``end`` is the one that ends a turn of the prompts' template."""
    if model.model.config.is_encoder_decoder:
        try:
            decoder_start_id(model.model)
        except ValueError as error:
            raise UserError(f"model {model.name!r}: {error}; add it to its config.json") from None
    ids = eos_ids(model.model)
    if not ids and end is None:
        return Caution(
            "no end-of-sequence token: every text runs to its length limit; add eos_token_id to config.json"
        )
    shown = ", ".join(map(model.token, ids)) or "nothing"
    if end is not None and end not in ids:
        return Caution(
            f"by its config texts end with {shown}, by its tokenizer turns end with {model.token(end)}: decoding "
            "stops there too, references end with it"
        )
    return f"texts end with {shown}" + (f"; references with {model.token(end)}" if len(ids) > 1 and end else "")


def check_same_ids(student: Outline, teacher: Outline) -> str:
    """The same tokens have the same ids."""
    require_same_tokenizer(student.tokenizer, teacher.tokenizer)
    return f"all {len(teacher.tokenizer.get_vocab()):,} ids mean the same"


def check_same_kind(student: Outline, teacher: Outline) -> str:
    """Both are encoder-decoder models, or neither is."""
    if student.kind != teacher.kind:
        raise UserError(
            f"{student.name!r} is {student.kind}, {teacher.name!r} is {teacher.kind}: of different kinds; "
            "choose two models of one family"
        )
    return f"both {teacher.kind}"


def check_width(model: Outline) -> str:
    """The head has a row for every id of the tokenizer."""
    n_tokens = n_ids(model.tokenizer)
    if n_tokens > model.width:
        raise UserError(
            f"the tokenizer of {model.name!r} has ids up to {n_tokens - 1}, but its head has {model.width} rows; "
            "use the tokenizer that the model was trained with, or resize its embeddings"
        )
    spare = model.width - n_tokens
    return f"{model.width:,} rows for {n_tokens:,} ids" + (
        f"; the {spare:,} others are left out" if spare else ""
    )


def check_served(student: Outline, teacher: Outline) -> str | Caution:
    """Other engines want a drafter's head to be as wide as its target's; ours compares the ids that both have."""
    if student.width != teacher.width:
        return Caution(
            f"{student.width:,} rows, the target's head has {teacher.width:,}: harmless here, but vLLM refuses such a "
            "drafter; specalign-train export gives it the target's rows"
        )
    return f"{teacher.width:,} rows, as the target"


def check_padding(student: Outline, teacher: Outline) -> str | Caution:
    """Rows are masked here, so padding never counts; other software may need it to agree."""
    ours, theirs = student.tokenizer.pad_token_id, teacher.tokenizer.pad_token_id
    if ours != theirs:
        return Caution(
            f"{ours} for the student, {theirs} for the teacher: harmless here, where rows are masked"
        )
    return f"id {theirs}" if theirs is not None else "none; none is needed"


def check_same_template(student: Outline, teacher: Outline) -> str | Caution:
    """Prompts are written with the teacher's chat template, whatever the student's."""
    if student.tokenizer.chat_template != teacher.tokenizer.chat_template:
        return Caution(
            f"{student.name!r} has another chat template: prompts are written with {teacher.name!r}'s"
        )
    return "the same" if teacher.tokenizer.chat_template else "neither has one"


def check_context(model: Outline, role: str, lengths: tuple[int, int], asks: tuple[str, str]) -> str:
    """Prompt and response of these lengths, which the fields ``asks`` ask for, fit into the model's positions.

    An encoder-decoder model has positions of its own for each of the two.
    """
    limit = context_limit(model.model)
    if limit is None:
        return "relative positions: no limit"
    together = not model.model.config.is_encoder_decoder
    needed = sum(lengths) if together else max(lengths)
    if needed > limit:
        fields = f"{asks[0]} + {asks[1]}" if together else asks[lengths.index(needed)]
        raise UserError(
            f"{fields} = {needed} exceed the {role}'s context of {limit}{scaled(model)}; lower one of them"
        )
    return f"{needed:,} of {limit:,} positions"


def scaled(model: Outline) -> str:
    """Why a context is shorter than the config's; empty where it is not."""
    scaling = position_scaling(model.model.config)
    if scaling is None:
        return ""
    return f" (beyond it, its {scaling.kind} scaling changes every position with the length of the text)"


def device_memory_bytes(device: torch.device) -> int:
    """All memory of the device; the machine's for the CPU and for MPS, which shares it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def _default_attention(model: Outline) -> str:
    return str(model.model.config._attn_implementation)
