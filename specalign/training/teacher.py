"""The teacher, loaded or without its weights, and the attention that models run with."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specalign.data.turns import end_of_turn
from specalign.models.attention import FLASH
from specalign.models.load import Attention, load_model, resolve_dtype, weightless
from specalign.models.preflight import flash_needs
from specalign.models.properties import add_end
from specalign.terminal import say
from specalign.training.config import TrainConfig
from specalign.training.distributed import rank


def load_teacher(
    config: TrainConfig, device: torch.device, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The frozen teacher, whose texts end where the chat template ends a turn too."""
    teacher = load_model(
        config.teacher.model,
        dtype=resolve_dtype(config.teacher.dtype, device),
        device=device,
        quantization=config.teacher.quantization,
        attn=attention_of(config, device),
        trust_remote_code=config.teacher.trust_remote_code,
    ).requires_grad_(False)
    add_end(teacher, end_of_turn(tokenizer, config.data.template))
    return teacher


def asleep(config: TrainConfig, device: torch.device, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The same without a weight, for a command that finds all that it needs of it on disk."""
    teacher = weightless(
        config.teacher.model,
        dtype=resolve_dtype(config.teacher.dtype, device),
        attn=attention_of(config, device),
        trust_remote_code=config.teacher.trust_remote_code,
    ).requires_grad_(False)
    add_end(teacher, end_of_turn(tokenizer, config.data.template))
    return teacher


def attention_of(config: TrainConfig, device: torch.device) -> Attention:
    """The implementation that models are loaded with: where flash_attention_2 cannot serve a recipe, a line says so.

    It needs CUDA and the flash-attn package, and half precision. Branches that share a trunk are told apart by a
    mask, which it does not take: one masked pass over a prompt's row reads far fewer tokens than a row a branch.
    """
    if config.attn != FLASH:
        return config.attn
    used: Attention = "sdpa"
    if missing := flash_needs(device):
        used, reason = "auto", f"attn = {FLASH} needs {missing}; using the model's default attention"
    elif config.rollout.shares_trunks:
        reason = f"branches that share a pass need a mask, which {FLASH} does not take; using sdpa"
        reason += " (rollout.packed = false gives each branch a row of its own)"
    elif config.student.drafts_in_parallel:
        used, reason = "sdpa", f"mask tokens need a mask, which {FLASH} does not take; using sdpa"
    elif config.optimiser.precision == "float32":
        reason = f"{FLASH} needs half precision, not optimiser.precision = float32; using sdpa"
    else:
        used, reason = FLASH, f"{FLASH} where whole texts are scored; decoding and validation run by sdpa"
    if rank() == 0:
        say(f"specalign-train: {reason}")
    return used
