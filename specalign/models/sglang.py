"""A head under SGLang's names, in a folder that this engine reads as well, and vLLM by its sources.

Read in SGLang's sources (srt/models/llama_eagle3.py, srt/models/llama.py and srt/model_executor/model_runner.py): the
config is a Llama's of one layer with ``draft_vocab_size``; the layer is called ``midlayer``; ``d2t`` is as in vLLM;
``eagle_config.eagle_aux_hidden_state_layer_ids`` names layers by what *leaves* them, one less than in vLLM, where what
enters them is meant. vLLM's loader takes ``midlayer`` for ``layers.0``, and the keys that it reads of a config stay.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from specalign.errors import UserError
from specalign.models.eagle import MIDLAYER, EagleConfig, EagleHead

ARCHITECTURE = "LlamaForCausalLMEagle3"


def sglang_config(config: EagleConfig, n_layers: int) -> dict[str, Any]:
    """config.json of a head for a target of ``n_layers``.

    Raises UserError where SGLang would compute something else: it starts the residual stream before ``hidden_norm``,
    and keeps what enters layers 1 to n_layers - 1 (of a Llama: what leaves the last one is not kept).
    """
    if config.norm_before_residual:
        raise UserError("SGLang has no heads with norm_before_residual")
    if not all(0 < layer < n_layers for layer in config.reads):
        raise UserError(
            f"SGLang gives a head what enters layers 1 to {n_layers - 1} of this target; this one reads "
            f"{', '.join(map(str, config.reads))}: train one with --student.reads {_others(n_layers)}"
        )
    fields = config.to_dict()
    leaves = [layer - 1 for layer in config.reads]
    return {
        **fields,
        **(config.transformer_layer_config or {}),
        "architectures": [ARCHITECTURE],
        "eagle_config": {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": leaves},
    }


def sglang_weights(head: EagleHead) -> dict[str, Tensor]:
    """Its tensors by SGLang's names."""
    return {
        name.replace("layers.0.", MIDLAYER, 1): tensor.contiguous()
        for name, tensor in head.state_dict().items()
    }


def _others(n_layers: int) -> str:
    """What EAGLE-3 heads read by default in SGLang."""
    return f"2 {n_layers // 2} {n_layers - 3}"
