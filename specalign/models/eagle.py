"""EAGLE-3 heads (Li et al. 2025, arXiv:2503.01840): one layer that drafts from the target's own hidden states.

Entry t of a head reads the embedding of token t + 1 and the target's states at t, and predicts token t + 2. In a draft
its own output stands in for the states that the target has not computed yet. The layer is Llama's whatever the target's
family is, since that is what vLLM and SGLang serve; config and weights are named as vLLM reads them
(``method: eagle3``; its models/llama_eagle3.py and configs/speculators/algos.py), and the folder is served as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from specalign.errors import UserError
from specalign.models.load import local_folder, resolve_model
from specalign.models.weights import quiet_loading, require_finite, require_fit, require_whole_files

MIDLAYER = "midlayer."
"""SGLang's name of the layer (specalign/models/sglang.py)."""


class EagleConfig(PreTrainedConfig):
    """config.json of a head, in the keys that vLLM reads.

    ``model_type`` is the one by which vLLM's own registry finds its reader, so that one folder serves both.
    """

    model_type = "speculators"
    speculators_model_type: str = "eagle3"
    transformer_layer_config: dict | None = None
    """Fields of a LlamaConfig: those of the one layer. ``vocab_size`` is the target's."""
    speculators_config: dict | None = None
    """What it was made for: algorithm, target, draft length."""
    draft_vocab_size: int | None = None
    """V': rows of the head's output."""
    target_hidden_size: int | None = None
    """h_t."""
    norm_before_residual: bool = False
    """Whether the residual stream starts behind ``hidden_norm``, or before it."""
    eagle_aux_hidden_state_layer_ids: list | None = None
    """Rising: state i is what enters layer i of the target; the number of its layers is what leaves the last one."""
    tie_word_embeddings: bool = False

    @property
    def layer(self) -> LlamaConfig:
        """Of the head's one layer, which attends by sdpa: its masks are its own."""
        fields: dict[str, Any] = {**(self.transformer_layer_config or {}), "attn_implementation": "sdpa"}
        fields.pop("model_type", None)
        return LlamaConfig(**fields)

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        """Where others look for vocabulary, context and width."""
        return self.layer if self.transformer_layer_config else self

    @property
    def reads(self) -> tuple[int, ...]:
        """Layers whose incoming states the head reads."""
        return tuple(self.eagle_aux_hidden_state_layer_ids or ())


class _Layer(nn.Module):
    """A Llama layer whose attention reads the token's embedding beside the hidden state."""

    def __init__(self, config: LlamaConfig, norm_before_residual: bool) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = LlamaAttention(config, layer_idx=0)
        for name in ("q_proj", "k_proj", "v_proj"):
            old = getattr(self.self_attn, name)
            setattr(self.self_attn, name, nn.Linear(2 * width, old.out_features, bias=old.bias is not None))
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(width, eps)
        self.hidden_norm = LlamaRMSNorm(width, eps)
        self.post_attention_layernorm = LlamaRMSNorm(width, eps)
        self.norm_before_residual = norm_before_residual

    def forward(self, embedded: Tensor, hidden: Tensor, **attention: Any) -> Tensor:
        """embedded, hidden [B, n, h] -> [B, n, h]."""
        normed = self.hidden_norm(hidden)
        residual = normed if self.norm_before_residual else hidden
        both = torch.cat([self.input_layernorm(embedded), normed], dim=-1)
        attended = residual + self.self_attn(both, **attention)[0]
        return attended + self.mlp(self.post_attention_layernorm(attended))


class EagleHead(PreTrainedModel):
    """The head: h is its hidden size and the target's, V' its draft vocabulary, V the target's."""

    config_class = EagleConfig
    config: EagleConfig
    main_input_name = "ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = ["t2d"]  # noqa: RUF012 (theirs); it says what d2t does
    d2t: Tensor
    """[V'] target id minus row, of a trimmed vocabulary; a head over the whole one has none."""

    def __init__(self, config: EagleConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False  # transformers sets it; the steps of a draft are what is recomputed
        layer = config.layer
        n_rows = config.draft_vocab_size or layer.vocab_size
        self.embed_tokens = nn.Embedding(layer.vocab_size, layer.hidden_size)
        self.fc = nn.Linear(len(config.reads) * (config.target_hidden_size or 0), layer.hidden_size, bias=False)
        self.layers = nn.ModuleList([_Layer(layer, config.norm_before_residual)])
        self.norm = LlamaRMSNorm(layer.hidden_size, layer.rms_norm_eps)
        self.lm_head = nn.Linear(layer.hidden_size, n_rows, bias=False)
        self.rotary_emb = LlamaRotaryEmbedding(layer)
        if n_rows < layer.vocab_size:
            self.register_buffer("d2t", torch.zeros(n_rows, dtype=torch.long))
        self.post_init()
        self.embed_tokens.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        """The target's embedding, which is not trained."""
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """[V', h]."""
        return self.lm_head

    def get_decoder(self) -> nn.Module:
        """Itself: it has one stack."""
        return self

    @property
    def is_trimmed(self) -> bool:
        """Whether the head lacks rows of the target's vocabulary."""
        return hasattr(self, "d2t")

    @property
    def draft_ids(self) -> Tensor:
        """[V'] the target's id of each row, ascending."""
        rows = torch.arange(self.lm_head.out_features, device=self.lm_head.weight.device)
        return rows + self.d2t if self.is_trimmed else rows

    def project(self, states: Tensor) -> Tensor:
        """The target's states [..., k * h], lowest layer first -> [..., h], what the layer reads in their place."""
        return self.fc(states)

    def forward(
        self,
        ids: Tensor,
        hidden: Tensor,
        *,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """What the layer puts out [B, n, h], before the final norm: the ``hidden`` of the next draft step.

        ``ids`` [B, n]: of entry t token t + 1. ``hidden`` [B, n, h]: projected states at t, or this function's output
        for the entry before. ``position_ids`` [B, n]: t, as in vLLM (llm_base_proposer.py), one less than its token's.
        ``attention_mask``: bool [B, 1, n, L], True where entry i sees entry j; None: causal over the entries given.
        """
        rotary = self.rotary_emb(hidden, position_ids)
        return self.layers[0](
            self.embed_tokens(ids).to(hidden.dtype),
            hidden,
            position_embeddings=rotary,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )

    def head_input(self, output: Tensor) -> Tensor:
        """What :func:`specalign.models.heads.head_of` is applied to [..., h]."""
        return self.norm(output)


def is_head(name: str) -> bool:
    """Whether ``name`` is the folder of a head (or a hub model, downloaded already), by its config.json."""
    folder = local_folder(resolve_model(name))
    path = None if folder is None else Path(folder) / "config.json"
    if path is None or not path.is_file():
        return False
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(config, dict) and config.get("speculators_model_type") == "eagle3"


def read_head_config(name: str) -> EagleConfig:
    """Raises UserError where ``name`` is no head."""
    if not is_head(name):
        raise UserError(f"model {name!r} is no head (or not downloaded): its config.json does not say eagle3")
    return EagleConfig.from_pretrained(resolve_model(name))


def load_head(
    name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> EagleHead:
    """Load a head by name, in eval mode, from safetensors only.

    Raises UserError where its files are damaged, are not what its config says, or hold no numbers.
    """
    require_whole_files(name, local_folder(resolve_model(name)))
    head: Any = _read(name, dtype=dtype)
    require_finite(name, head)
    return head.to(torch.device(device)).eval()


def empty_head(name: str) -> EagleHead:
    """The head without weights, on the meta device: only its config is read. Raises UserError as loading it would."""
    with _clear_errors(name), torch.device("meta"):
        return EagleHead(_config(name))


def check_head_weights(name: str) -> str:
    """As :func:`specalign.models.load.check_weights`, of a head."""
    n_files = require_whole_files(name, local_folder(resolve_model(name)))
    _read(name, device_map="meta")
    return f"{n_files} file{'s' if n_files > 1 else ''}, all keys and shapes as config.json says"


def _read(name: str, **options: Any) -> EagleHead:
    """Raises UserError where weights are missing, or are not of the shapes that the config says."""
    with _clear_errors(name), quiet_loading():
        loaded: Any = EagleHead.from_pretrained(
            resolve_model(name),
            config=_config(name),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            key_mapping={f"^{re.escape(MIDLAYER)}": "layers.0."},
            **options,
        )
    head, report = loaded
    require_fit(name, report)
    return head


def _config(name: str) -> EagleConfig:
    config = EagleConfig.from_pretrained(resolve_model(name))
    _require_readable(name, config)
    return config


@contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"cannot load head {name!r}: {' '.join(str(error).split())[:300]}") from None


def _require_readable(name: str, config: EagleConfig) -> None:
    """Raise UserError for heads of the same format that compute something else."""
    for key in ("norm_before_fc", "fc_norm", "norm_output"):
        if getattr(config, key, False):
            raise UserError(f"head {name!r} has {key}, which is not supported by specalign")
    if not config.reads or not config.target_hidden_size:
        raise UserError(
            f"head {name!r}: its config.json names no eagle_aux_hidden_state_layer_ids or target_hidden_size"
        )
