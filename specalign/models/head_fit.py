"""What can be known of a head on a target's states before a weight is read, and whether it belongs to a target."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from specalign.curves import PROVENANCE
from specalign.errors import UserError
from specalign.models.eagle import EagleHead
from specalign.models.heads import head_of
from specalign.models.load import resolve_model
from specalign.models.probe import N_TOKENS, fingerprint, name_of, probe_ids, same_fingerprint
from specalign.models.properties import decoder_layers
from specalign.preflight import Caution

MADE_FOR = "target"
"""Key of provenance.json in a head's folder."""


@dataclass(frozen=True)
class Origin:
    """The target that a head was trained for, as its folder tells it."""

    n_layers: int
    fingerprint: Sequence[float]
    """Some of its logits (:func:`specalign.models.probe.fingerprint`)."""
    dtype: str
    """That it had there."""


def origin_as(target: PreTrainedModel) -> Origin:
    """What a head for ``target`` will tell."""
    return Origin(len(decoder_layers(target)), fingerprint(target), str(target.dtype))


def origin_of(name: str) -> Origin | None:
    """What a head's folder tells; None where it says nothing. Raises UserError where it is damaged."""
    path = Path(resolve_model(name)) / PROVENANCE
    if not path.is_file():
        return None
    try:
        written: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")).get(MADE_FOR)
        return Origin(**written) if written else None
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged: it does not say which target the head is for") from None


def check_verifier(head: EagleHead, target: str) -> str | Caution:
    """The target that the head's config says it was trained for: another one's states may mean something else."""
    verifier = ((head.config.speculators_config or {}).get("verifier") or {}).get("name_or_path") or ""
    if not verifier:
        return Caution("its config.json does not say which target it was trained for")
    if verifier not in (target, resolve_model(target)):
        return Caution(f"trained for {verifier!r}: the states of {target!r} may mean something else to it")
    return f"trained for {verifier!r}"


def other_weights(origin: Origin | None, target: PreTrainedModel) -> bool:
    """Whether ``target`` has other weights than the one that a head was trained for, by some of its logits.

    False where that is not known. A head drafts for such a target, without loss, but was not made for its states.
    """
    if origin is None:
        return False
    ours, dtypes = fingerprint(target), {origin.dtype, str(target.dtype)}
    full = dtypes <= {"torch.float32", "torch.float64"}
    return not same_fingerprint(ours, origin.fingerprint, "torch.float32" if full else "torch.bfloat16")


@torch.inference_mode()
def head_fingerprint(head: EagleHead) -> list[float]:
    """As :func:`specalign.models.probe.fingerprint`, of a head: its logits after states that are made up."""
    ids = probe_ids(head)
    states = torch.arange(ids.numel() * head.fc.in_features, device=ids.device).sin().to(head.dtype)
    positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    hidden = head.project(states.view(*ids.shape, -1))
    output = head(ids, hidden, position_ids=positions, attention_mask=None)
    logits = head_of(head)(head.head_input(output))[0, -1].float()
    places = [(place + 1) * len(logits) // (N_TOKENS + 1) for place in range(N_TOKENS)]
    return [*logits[places].tolist(), float(logits.amax())]


def require_head_fits(head: PreTrainedModel, target: PreTrainedModel, origin: Origin | None = None) -> None:
    """Raise UserError unless a head can read the states of ``target`` and draft its ids; neither needs weights.

    A model that is no head reads nothing. ``origin`` is what the head's folder tells of its target.
    """
    reason = _misfit(head, target, origin) if isinstance(head, EagleHead) else ""
    if reason:
        raise UserError(f"{name_of(head)} does not fit the target, {name_of(target)}: {reason}")


def check_head_fits(head: EagleHead, target: PreTrainedModel, origin: Origin | None) -> str:
    """The same, and what fits."""
    require_head_fits(head, target, origin)
    reads = ", ".join(map(str, head.config.reads))
    return f"states {reads} of {len(decoder_layers(target))} layers, {head.lm_head.out_features:,} of its ids"


def _misfit(head: EagleHead, target: PreTrainedModel, origin: Origin | None) -> str:
    if target.config.is_encoder_decoder:
        return "heads read the states of decoder-only models"
    text, reads, n_layers = target.config.get_text_config(), head.config.reads, len(decoder_layers(target))
    if head.config.target_hidden_size != text.hidden_size:
        return (
            f"it reads states of {head.config.target_hidden_size} numbers, the target's have {text.hidden_size}"
        )
    if max(reads) > n_layers:
        return f"it reads layers {list(reads)}, the target has {n_layers}"
    if origin and origin.n_layers != n_layers:
        return f"it was trained for a target of {origin.n_layers} layers, this one has {n_layers}"
    if head.embed_tokens.num_embeddings != text.vocab_size:
        return f"it has {head.embed_tokens.num_embeddings} ids, the target has {text.vocab_size}"
    return ""
