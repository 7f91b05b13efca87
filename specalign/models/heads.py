"""From hidden states to comparable logits: the output head, and the ids that two models have in common.

The one place that knows soft-caps, T5's output scale, padded vocabulary rows and trimmed draft vocabularies;
objectives and benchmark both come through here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from specalign.models.attention import attention_for
from specalign.models.packing import can_pack, pack, packed_linear


@dataclass(frozen=True)
class Head:
    """An output head: x = scale * hidden @ weight.T + bias; logits = x, or softcap * tanh(x / softcap).

    Calling it maps hidden states [..., d] to logits [..., V] in the dtype of the weight.
    """

    weight: Tensor
    """[V, d]."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    """T5 with tied embeddings: d ** -0.5. Cohere and Granite have a constant of their config."""
    softcap: float | None = None
    """Gemma 2: logits are squeezed into (-softcap, softcap)."""
    ids: Tensor | None = None
    """[V] vocabulary id of each row, ascending; None: row i is id i."""
    packed: Tensor | None = None
    """A copy of the weight for the CPU's packed kernel, which is used then."""

    def __call__(self, hidden: Tensor) -> Tensor:
        scaled = hidden * self.scale
        if self.packed is not None:
            return self.cap(packed_linear(scaled, self.packed, self.bias))
        return self.cap(functional.linear(scaled, self.weight, self.bias))

    def cap(self, logits: Tensor) -> Tensor:
        """The soft-cap, where there is one."""
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @property
    def width(self) -> int:
        """Number of rows."""
        return self.weight.shape[0]


def head_of(model: PreTrainedModel, ids: Tensor | None = None) -> Head:
    """The head of a causal or encoder-decoder model, or an EAGLE head's; with ``ids`` [V'], only the rows of those ids.

    Gradients reach the model's own weight, through the selection too. ``ids`` are among those of a head that has
    a part of the vocabulary.
    """
    linear = model.get_output_embeddings()
    assert isinstance(linear, nn.Linear), f"{type(model).__name__} has no linear output head"
    config = model.config.get_text_config()
    head = Head(
        linear.weight,
        linear.bias,
        scale=_output_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
        ids=_own_ids(model),
        packed=getattr(linear, "packed", None),
    )
    if ids is None:
        return head
    ids = ids.to(linear.weight.device)
    return _rows(head, ids if head.ids is None else torch.searchsorted(head.ids, ids))


def _own_ids(model: PreTrainedModel) -> Tensor | None:
    """[V'] the ids of an EAGLE head's rows; None for all other models, and where it has every row."""
    found: Any = getattr(model, "draft_ids", None)
    return found if getattr(model, "is_trimmed", False) else None


def pack_head(head: Head) -> Head:
    """The same head on the packed kernel, where the machine has one."""
    if head.packed is not None or not can_pack(head.weight):
        return head
    return replace(head, packed=pack(head.weight))


def common_heads(student: Head, teacher: Head, n_tokens: int) -> tuple[Head, Head]:
    """Both heads, restricted to the ids that both know and that the tokenizer (``n_tokens`` ids) can produce.

    Padded rows (Qwen2.5: 151,936 and 152,064 rows for 151,665 tokens) take part in neither softmax, which is
    the same as logits of -inf there; with a trimmed student, of ids that :func:`known_ids` has left, the teacher is
    renormalised over the draft vocabulary. The teacher's head must be a full one.
    """
    assert teacher.ids is None, "the teacher's head must be a full one"
    known = min(teacher.width, n_tokens)
    if student.ids is None:
        width = min(student.width, known)
        return _first(student, width), _first(teacher, width)
    return student, _rows(teacher, student.ids)


def known_ids(ids: Tensor, teacher: Head, n_tokens: int) -> Tensor:
    """Of a draft vocabulary [V'] the ids that the teacher and the tokenizer know too.

    Waits for the device: once a run, where :func:`common_heads` is once a loss.
    """
    return ids[ids < min(teacher.width, n_tokens)]


def hidden_states(
    model: PreTrainedModel, decoder: Callable[..., Any] | None = None, /, **inputs: Any
) -> Tensor:
    """What the head is applied to: last hidden states [B, T, d] after the final norm.

    ``decoder`` stands for the model's own one, compiled for instance.

    ``inputs`` are those of the model's forward; an encoder-decoder model takes ``input_ids``,
    ``attention_mask`` and ``decoder_input_ids`` and gives the decoder's states. With ``encoder_rows`` [B] row i of
    the decoder reads row ``encoder_rows[i]`` of the encoder.
    """
    decoder = model.get_decoder() if decoder is None else decoder
    mask = inputs.get("attention_mask")
    with attention_for(model, masked=isinstance(mask, dict) or (mask is not None and mask.dim() > 2)):
        return _states(model, decoder, inputs)


def _states(model: PreTrainedModel, decoder: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
    if not model.config.is_encoder_decoder:
        return decoder(**inputs, use_cache=False).last_hidden_state
    mask, owner = inputs.get("attention_mask"), inputs.get("encoder_rows")
    encoded = model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
    if owner is not None:
        encoded, mask = encoded[owner], None if mask is None else mask[owner]
    return decoder(
        input_ids=inputs["decoder_input_ids"],
        encoder_hidden_states=encoded,
        encoder_attention_mask=mask,
        use_cache=False,
    ).last_hidden_state


def _output_scale(config: PreTrainedConfig) -> float:
    if getattr(config, "scale_decoder_outputs", False):
        return config.d_model**-0.5
    return getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1.0)


def _rows(head: Head, rows: Tensor) -> Head:
    ids = rows if head.ids is None else head.ids[rows]
    bias = None if head.bias is None else head.bias[rows]
    return replace(head, weight=head.weight[rows], bias=bias, ids=ids, packed=None)


def _first(head: Head, width: int) -> Head:
    if width == head.width:
        return head
    bias = None if head.bias is None else head.bias[:width]
    return replace(head, weight=head.weight[:width], bias=bias, packed=None)
