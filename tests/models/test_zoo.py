"""Every causal architecture of transformers decodes and is sliced rightly, or is refused by its class's name."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from specalign.decoding import ModelDrafter, generate
from specalign.errors import UserError
from specalign.models.probe import require_own_logits
from specalign.models.properties import decoder_layers
from specalign.models.slicing import slice_layers

LAYERS = 4
LARGEST = 3_000_000
"""Parameters; what stays larger has sizes of names that :data:`SIZES` does not know."""
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size(_per_layer_input)?", 40),
    (r"(num_hidden_layers|n_layers?|num_layers|decoder_layers|num_decoder_layers)", LAYERS),
    (r"(num_attention_heads|n_heads?|num_heads|decoder_attention_heads)", 4),
    (r"(num_key_value_heads|num_kv_heads|multi_query_group_num)", 2),
    (
        r"(hidden_size|d_model|n_embd|dim|embed_dim|embedding_size|word_embed_proj_dim|hidden_dim|n_positions_dim)",
        32,
    ),
    (r"(head_dim|v_head_dim|qk_nope_head_dim|qk_rope_head_dim|attention_head_dim|d_kv)", 8),
    (r"(rotary_dim|mamba_d_head|mamba_head_dim)", 8),
    (r"(mamba_n_heads|mamba_num_heads)", 8),
    (r"(mamba_d_ssm|lru_width|mamba_d_state|ssm_state_size|mamba_chunk_size|chunk_size)", 32),
    (r"(q_lora_rank|kv_lora_rank)", 16),
    (
        r"(intermediate_size|ffn_dim|n_inner|d_ff|decoder_ffn_dim|moe_intermediate_size|shared_expert_intermediate_size"
        r"|intermediate_size_mlp|dense_intermediate_size|ffn_hidden_size|shared_intermediate_size)",
        48,
    ),
    (r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts)", 4),
    (r"(num_experts_per_tok|moe_topk|top_k_experts|moe_k)", 2),
    (r"(n_group|topk_group|n_shared_experts|num_shared_experts)", 1),
    (r"(max_position_embeddings|n_positions|max_sequence_length|max_seq_len|n_ctx|seq_length)", 64),
    (r"(hidden_size_per_layer_input)", 8),
    (r"pad_token_id", 0),
    (r"bos_token_id", 1),
    (r"eos_token_id", 2),
)
"""Names of config fields, and what they are made to be."""


def small(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """The config with every size that :data:`SIZES` knows made tiny; lists are left for the class to compute."""
    default = kind().to_dict()
    if "qk_rope_head_dim" in default:  # its head_dim follows from the others
        default.pop("head_dim", None)
    sizes: dict[str, Any] = {
        name: size for name in default for pattern, size in SIZES if re.fullmatch(pattern, name)
    }
    return kind(**sizes)


def causal(model_type: str) -> PreTrainedModel:
    """A tiny model in float32 of the causal class of ``model_type``, with weights that decide something."""
    config = small(CONFIG_MAPPING[model_type])
    with torch.device("meta"):
        n_parameters = sum(each.numel() for each in AutoModelForCausalLM.from_config(config).parameters())
    if n_parameters > LARGEST:
        raise ValueError(f"{n_parameters:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config)
        model.float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.3)
    return model


MODEL_TYPES = tuple(sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)))

NAMES = """
afmoe apertus arcee aria_text biogpt bitnet codegen cohere cohere2 cohere2_moe ctrl cwm doge dots1 ernie4_5
ernie4_5_moe exaone4 exaone_moe falcon flex_olmo flint gemma gemma2 gemma3_text glm glm4 glm4_moe gpt-sw3 gpt2
gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa
granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe
kolibri1 laguna lfm2 llama mellum mimo_v2_flash minimax_m2 minimax_m3_vl_text ministral ministral3 mistral
mixtral moshi mpt nanochat nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3
qwen3_moe seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma xglm
"""
SUPPORTED = frozenset(NAMES.split())
"""Model types that decode and can be sliced here; all others may be refused, and must not be wrong."""
PROMPTS = [[5, 9, 31, 7, 7, 12, 9], [3, 8, 20]]
N_NEW = 8
QUICK = ("bart", "blenderbot", "gemma3_text", "gpt2", "jamba", "opt", "qwen2_moe", "smollm3", "whisper")
"""Of each kind of pattern and refusal one, for the default suite."""


def attempt(act: Callable[[], Any]) -> tuple[Any, str]:
    """What ``act`` gives, and the line by which it is refused."""
    try:
        return act(), ""
    except UserError as error:
        return None, str(error)


def greedy(model: Any, prompt: Sequence[int]) -> list[int]:
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(N_NEW):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def without(model: Any, skipped: Sequence[int]) -> Any:
    """A copy whose ``skipped`` layers do nothing."""
    changed = copy.deepcopy(model)
    layers = decoder_layers(changed)
    for place in skipped:
        before = layers[place].forward

        def idle(*args: Any, before: Any = before, **inputs: Any) -> Any:
            hidden = args[0] if args else inputs["hidden_states"]
            found = before(*args, **inputs)
            return hidden if isinstance(found, torch.Tensor) else (hidden, *found[1:])

        layers[place].forward = idle
    return changed


def built(model_type: str) -> PreTrainedModel | None:
    """None where made-up sizes make no model."""
    try:
        return causal(model_type)
    except Exception:  # what they make foreign classes raise has no end
        return None


def require_right_or_refused(model_type: str, model: PreTrainedModel) -> None:
    name, supported = type(model).__name__, model_type in SUPPORTED

    def decode() -> list[list[int]]:
        require_own_logits("it", model)
        return generate(model, ModelDrafter(model), PROMPTS, gamma=3, max_new_tokens=N_NEW, eos=()).token_ids

    found, refusal = attempt(decode)
    assert found == [greedy(model, prompt) for prompt in PROMPTS] if found else name in refusal
    assert found or not supported, refusal
    kept = (0, LAYERS - 1)
    student, refusal = attempt(lambda: slice_layers(model, kept))
    assert student or name in refusal
    assert student or not supported, refusal
    if student:
        ids = torch.tensor(PROMPTS[:1])
        with torch.inference_mode():
            ours, theirs = (
                each(ids, use_cache=False).logits for each in (student, without(model, range(1, LAYERS - 1)))
            )
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("model_type", [name for name in QUICK if name in MODEL_TYPES])
def test_an_architecture_is_right_or_refused(model_type: str) -> None:
    require_right_or_refused(model_type, causal(model_type))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in QUICK])
def test_every_architecture_is_right_or_refused(model_type: str) -> None:
    model = built(model_type)
    if model is None:
        assert model_type not in SUPPORTED
        pytest.skip("its config has sizes that are not known here")
    require_right_or_refused(model_type, model)
