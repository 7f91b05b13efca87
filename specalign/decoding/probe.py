"""Whether a model decodes here as its own class does: tried once a model, before anything is decoded.

The engine gives positions, masks and a cache with a length per row. A family that makes its own of them, or keeps a
state of another kind (a recurrent one for instance), would decode wrongly without a word.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.decoding.session import Session
from specalign.decoding.stepper import Stepper
from specalign.models.eagle import EagleHead
from specalign.models.heads import head_of
from specalign.models.probe import attempted, decoder_probe_ids, name_of, own_logits, probe_ids, require_same

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 0.1}
"""Of the largest logit: other kernels, the same mathematics."""
STEPPED = 5
"""Tokens that steps feed each row."""
QUANTISED = 0.25
"""Where activations are quantised call by call."""

_decodable: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()


@torch.inference_mode()
def require_decodable(model: PreTrainedModel) -> None:
    """Raise UserError unless cached steps of ragged rows give the logits of the model's own forward pass.

    Two short calls of each, once a model. Raises UserError too where the model's logits are no numbers. A head on a
    target's states has no forward pass of its own to be held against.
    """
    if model in _decodable or isinstance(model, EagleHead):
        return
    who, was_training = name_of(model), model.training
    model.eval()
    try:
        own = _own(who, model)
        ours = attempted(who, model, lambda: _stepped(model))
    finally:
        model.train(was_training)
    quantised = getattr(model, "is_quantized", False)
    require_same(who, model, ours, own, QUANTISED if quantised else TOLERANCE.get(own.dtype, 0.1))
    _decodable.add(model)


def _rows(model: PreTrainedModel) -> list[list[int]]:
    """Two rows of eight and six tokens; an encoder-decoder model's grow alike, one is enough."""
    (row,) = probe_ids(model).tolist()
    return [row] if model.config.is_encoder_decoder else [row, row[::-1][:6]]


def _own(who: str, model: PreTrainedModel) -> Tensor:
    """The logits [B, 5, V] after the tokens that steps are fed, without a cache."""
    if model.config.is_encoder_decoder:
        read = decoder_probe_ids(model)[:, :STEPPED]
        return own_logits(who, model, input_ids=probe_ids(model), decoder_input_ids=read)
    rows = [torch.tensor([row], device=model.device) for row in _rows(model)]
    return torch.cat([own_logits(who, model, input_ids=row)[:, -STEPPED:] for row in rows])


def _stepped(model: PreTrainedModel) -> Tensor:
    """The same by the engine: a prefill, two steps of two tokens and one of one."""
    rows = _rows(model)
    stepper = Stepper(model, head_of(model))
    if model.config.is_encoder_decoder:
        session, fed = Session.start(stepper, rows, STEPPED + 1), decoder_probe_ids(model)[:, :STEPPED]
    else:
        session = Session.start(stepper, [row[: 1 - STEPPED] for row in rows], STEPPED + 1)
        fed = torch.tensor([row[-STEPPED:] for row in rows], device=model.device)
    return torch.cat([session.extend(part) for part in fed.split(2, 1)], 1)
