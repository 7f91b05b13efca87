"""What can be known of a head on a target's states before a weight is read, and whether it fits a target."""

from __future__ import annotations

from transformers import PreTrainedModel

from specalign.errors import UserError
from specalign.models.eagle import EagleHead
from specalign.models.load import resolve_model
from specalign.models.probe import name_of
from specalign.models.properties import decoder_layers
from specalign.preflight import Caution


def check_verifier(head: EagleHead, target: str) -> str | Caution:
    """The target that the head's config says it was trained for: another one's states may mean something else."""
    verifier = ((head.config.speculators_config or {}).get("verifier") or {}).get("name_or_path") or ""
    if not verifier:
        return Caution("its config.json does not say which target it was trained for")
    if verifier not in (target, resolve_model(target)):
        return Caution(f"trained for {verifier!r}: the states of {target!r} may mean something else to it")
    return f"trained for {verifier!r}"


def require_head_fits(head: PreTrainedModel, target: PreTrainedModel) -> None:
    """Raise UserError unless a head can read the states of ``target`` and draft its ids; neither needs weights.

    A model that is no head reads nothing.
    """
    reason = _misfit(head, target) if isinstance(head, EagleHead) else ""
    if reason:
        raise UserError(f"{name_of(head)} does not fit the target, {name_of(target)}: {reason}")


def check_head_fits(head: EagleHead, target: PreTrainedModel) -> str:
    """The same, and what fits."""
    require_head_fits(head, target)
    reads = ", ".join(map(str, head.config.reads))
    return f"states {reads} of {len(decoder_layers(target))} layers, {head.lm_head.out_features:,} of its ids"


def _misfit(head: EagleHead, target: PreTrainedModel) -> str:
    if target.config.is_encoder_decoder:
        return "heads read the states of decoder-only models"
    text, reads = target.config.get_text_config(), head.config.reads
    if head.config.target_hidden_size != text.hidden_size:
        return (
            f"it reads states of {head.config.target_hidden_size} numbers, the target's have {text.hidden_size}"
        )
    if max(reads) > len(decoder_layers(target)):
        return f"it reads layers {list(reads)}, the target has {len(decoder_layers(target))}"
    if head.embed_tokens.num_embeddings > text.vocab_size:
        return f"it has {head.embed_tokens.num_embeddings} ids, the target has {text.vocab_size}"
    return ""
