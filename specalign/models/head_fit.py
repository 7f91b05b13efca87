"""Whether a head on a target's states fits a target."""

from __future__ import annotations

from transformers import PreTrainedModel

from specalign.errors import UserError
from specalign.models.eagle import EagleHead
from specalign.models.probe import name_of
from specalign.models.properties import decoder_layers


def require_head_fits(head: PreTrainedModel, target: PreTrainedModel) -> None:
    """Raise UserError unless a head can read the states of ``target`` and draft its ids; neither needs weights.

    A model that is no head reads nothing.
    """
    reason = _misfit(head, target) if isinstance(head, EagleHead) else ""
    if reason:
        raise UserError(f"{name_of(head)} does not fit the target, {name_of(target)}: {reason}")


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
