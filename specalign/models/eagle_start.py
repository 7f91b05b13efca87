"""An EAGLE-3 head before its first step: the shape of its target, and what of it can be copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from specalign.errors import UserError
from specalign.models.eagle import EagleConfig, EagleHead
from specalign.models.heads import head_of

N_STATES = 3
"""Layers whose states a head reads: engines take three."""


def default_layers(n_layers: int) -> tuple[int, ...]:
    """Low, middle, and what leaves the last layer: the state nearest to what the target says next."""
    return (min(2, n_layers - 2), max(n_layers // 2, min(2, n_layers - 2) + 1), n_layers)


def require_reads(layers: Sequence[int], n_layers: int) -> None:
    """Raise UserError unless ``layers`` are three that rise from 0 to ``n_layers`` at most."""
    if len(layers) != N_STATES or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] > n_layers:
        raise UserError(
            f"a head reads the states of {N_STATES} layers that rise from 0 to {n_layers} ({n_layers}: what leaves the "
            f"last one), not {list(layers)}"
        )


def head_config(
    target: PreTrainedConfig,
    reads: Sequence[int] = (),
    n_rows: int = 0,
    *,
    verifier: str = "",
    n_draft: int = 3,
) -> EagleConfig:
    """Of a head for ``target`` with its width, attention shape and context, over ``n_rows`` of its ids (0: all).

    ``reads`` are :func:`default_layers` where there are none; ``verifier`` is the name of the target and ``n_draft``
    the draft length that engines take by default. Raises UserError for an encoder-decoder target and for layers that
    it lacks.
    """
    if target.is_encoder_decoder:
        raise UserError("a head drafts for decoder-only targets; this one is an encoder-decoder")
    text = target.get_text_config()
    reads = reads or default_layers(text.num_hidden_layers)
    require_reads(reads, text.num_hidden_layers)
    proposal = {"proposal_type": "greedy", "speculative_tokens": n_draft}
    return EagleConfig(
        transformer_layer_config=_layer_fields(text),
        speculators_config={
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": verifier, "architectures": target.architectures or []},
        },
        draft_vocab_size=n_rows or text.vocab_size,
        target_hidden_size=text.hidden_size,
        eagle_aux_hidden_state_layer_ids=list(reads),
    )


def _layer_fields(text: PreTrainedConfig) -> dict[str, Any]:
    """A Llama layer in the shape of the target's own; ``rope_theta`` again for readers of older configs."""
    theta = _rope_theta(text)
    return {
        "model_type": "llama",
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        "hidden_act": "silu",
        "max_position_embeddings": text.max_position_embeddings,
        "rms_norm_eps": getattr(text, "rms_norm_eps", 1e-6),
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rope_theta": theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }


def _rope_theta(text: PreTrainedConfig) -> float:
    """The base of the target's rotary positions, of its full attention where kinds of layers differ."""
    found = getattr(text, "rope_parameters", None) or {}
    tables = [found, found.get("full_attention") or {}]
    return float(next((table["rope_theta"] for table in tables if "rope_theta" in table), 10_000.0))


@torch.no_grad()
def new_head(
    target: PreTrainedModel, config: EagleConfig, ids: Tensor | None = None, seed: int = 0
) -> EagleHead:
    """A head in the target's dtype with its embedding, final norm and rows ``ids`` [V'] of its output; the rest drawn.

    ``ids`` rise; None: all. A soft-cap of the target's logits is left out: engines have none for heads.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = EagleHead(config)
    head.to(target.dtype).to(target.device)  # type: ignore[arg-type]
    embedding = target.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    head.embed_tokens.weight.copy_(embedding.weight[: head.embed_tokens.num_embeddings])
    theirs = head_of(target, ids)
    head.lm_head.weight.copy_(theirs.weight[: head.lm_head.out_features] * theirs.scale)
    norm = getattr(target.get_decoder(), "norm", None)
    if norm is not None and getattr(norm, "bias", None) is None:
        head.norm.weight.copy_(
            norm(torch.ones_like(head.norm.weight))
        )  # Gemma stores what its gain exceeds 1 by
    if head.is_trimmed:
        assert ids is not None
        head.d2t.copy_(ids - torch.arange(len(ids), device=ids.device))
    return head.eval()
