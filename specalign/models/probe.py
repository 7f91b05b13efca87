"""Whether a model computes here what its own class computes: tried on a few tokens, for every family to come.

Training and scoring read the decoder's hidden states and apply the head themselves
(:func:`specalign.models.heads.hidden_states`). A family with something between or behind the two, a bias on the
logits for instance, would be trained and decoded wrongly without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.errors import UserError
from specalign.models.attention import attention_for
from specalign.models.heads import head_of, hidden_states

N_TOKENS = 8
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Of the largest logit: what the same sums in another order may differ by."""


@torch.inference_mode()
def require_own_logits(who: str, model: PreTrainedModel) -> None:
    """Raise UserError unless our forward pass, head included, gives the model's own logits, and they are numbers.

    One call of each on eight tokens. ``who`` is what the error calls the model.
    """
    ids = probe_ids(model)
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = decoder_probe_ids(model)
    own = own_logits(who, model, **inputs)
    ours = attempted(who, model, lambda: head_of(model)(hidden_states(model, **inputs)))
    require_same(who, model, ours, own, TOLERANCE.get(own.dtype, 2e-2))


@torch.inference_mode()
def fingerprint(model: PreTrainedModel) -> list[float]:
    """Some logits after the tokens of the probe: two loads of one model agree on them, two models do not.

    Weights can be hashed where they lie in a folder; this tells models of the hub and changed configs apart as well.
    """
    inputs = {"input_ids": probe_ids(model)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = decoder_probe_ids(model)
    logits = head_of(model)(hidden_states(model, **inputs))[0, -1].float()
    return [*logits[probe_ids(model)[0]].tolist(), float(logits.amax())]


def same_fingerprint(ours: Sequence[float], theirs: Sequence[float], dtype: str) -> bool:
    """Whether two fingerprints differ by no more than rounding in ``dtype``, ``torch.float32`` or another."""
    largest = max(map(abs, [*ours, *theirs]))
    tolerance = 5e-3 if dtype in ("torch.float32", "torch.float64") else 5e-2
    return all(abs(a - b) <= tolerance * largest for a, b in zip(ours, theirs, strict=True))


def probe_ids(model: PreTrainedModel) -> Tensor:
    """[1, 8] ids that are spread over the vocabulary."""
    width = model.config.get_text_config().vocab_size
    places = [(place + 1) * width // (N_TOKENS + 1) for place in range(N_TOKENS)]
    return torch.tensor([places], device=model.device)


def decoder_probe_ids(model: PreTrainedModel) -> Tensor:
    """[1, 8] other ids for the decoder of an encoder-decoder model."""
    return probe_ids(model).flip(1)


def own_logits(who: str, model: PreTrainedModel, **inputs: Any) -> Tensor:
    """What the model's own class computes [B, T, V]. Raises UserError where it fails, or gives no numbers.

    By the attention that its decoding runs with: flash_attention_2 would refuse a float32 student.
    """
    with attention_for(model, masked=True):
        logits = attempted(who, model, lambda: model(**inputs, use_cache=False).logits)
    if not bool(logits.amax(-1).isfinite().all()):
        raise UserError(not_finite(who, logits.dtype))
    return logits


def name_of(model: PreTrainedModel) -> str:
    """What to call a model that was loaded elsewhere: its class, and its folder where it has one."""
    folder = model.config._name_or_path
    return type(model).__name__ + (f" of {folder!r}" if folder else "")


def not_finite(who: str, dtype: torch.dtype) -> str:
    """The line for a model whose logits are NaN or infinite."""
    better = {torch.float16: "float32 or bfloat16", torch.bfloat16: "float32"}
    remedy = (
        f"; if its weights are sound, load it in {better[dtype]}, where they do not overflow"
        if dtype in better
        else ""
    )
    return f"{who}: its logits are no finite numbers (NaN or infinity) in {str(dtype)[6:]}{remedy}"


def attempted(who: str, model: PreTrainedModel, compute: Callable[[], Tensor]) -> Tensor:
    """What ``compute`` gives; UserError with the model's class where its architecture does not allow that."""
    try:
        return compute()
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a foreign architecture raises where ours expects something else
        lines = str(error).strip().splitlines() or [""]
        raise UserError(f"{_unsupported(who, model)}: {type(error).__name__}: {lines[0]}") from error


def require_same(who: str, model: PreTrainedModel, ours: Tensor, own: Tensor, tolerance: float) -> None:
    """Raise UserError where most logits [B, T, V] of a row differ by more than ``tolerance`` of the largest.

    Most of its positions, not any: a router that rounding tips over sends single tokens elsewhere.
    """
    if ours.shape != own.shape:
        raise UserError(
            f"{_unsupported(who, model)}: logits of shape {list(ours.shape)}, not {list(own.shape)}"
        )
    gap = largest_gap(ours, own)
    if not gap <= tolerance:
        raise UserError(
            f"{_unsupported(who, model)}: its own logits differ from ours by {gap:.1%} of the largest"
        )


def largest_gap(ours: Tensor, own: Tensor) -> float:
    """Of the rows of logits [B, T, V] the largest median over positions of the largest difference, relative to the
    largest logit there.
    """
    ours, own = (tensor.float().nan_to_num(nan=1e30, neginf=0.0) for tensor in (ours, own))
    gaps = (ours - own).abs().amax(-1) / own.abs().amax(-1).clamp(min=1e-30)
    return float(gaps.median(-1).values.max())


def _unsupported(who: str, model: PreTrainedModel) -> str:
    return f"{who}: {type(model).__name__} is not supported by specalign"
