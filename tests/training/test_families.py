"""Every family trains from an aligned slice: Llama's kin, Gemma's normalised outputs, T5's decoder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from specalign.training.config import TrainConfig
from specalign.training.session import train_all

IDS: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "eos_token_id": 2}
DECODER: dict[str, Any] = {
    **IDS,
    "bos_token_id": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
GEMMA: dict[str, Any] = {**DECODER, "head_dim": 8, "sliding_window": 8}
T5: dict[str, Any] = {
    **IDS,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 4,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
TEACHERS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**DECODER)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA | {"attn_implementation": "eager"})),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5)),
}


@pytest.fixture(params=TEACHERS)
def teacher(request: pytest.FixtureRequest, teacher_folder: Path, tmp_path: Path) -> Path:
    """A random model of one family, with the tiny tokenizer."""
    folder = tmp_path / request.param
    shutil.copytree(teacher_folder, folder)
    torch.manual_seed(0)
    TEACHERS[request.param]().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["aligned", "sft", "gkd", "distillspec", "contrastive"])
def test_each_method_trains_each_family(teacher: Path, method: str, tiny: Callable[..., TrainConfig]) -> None:
    """A plain checkpoint of the teacher's class with two decoder layers, finite figures all the way."""
    rollout = {"style": "full"} if teacher.name == "t5" else {}
    config = tiny(method, teacher={"model": str(teacher)}, rollout=rollout)
    train_all([config])
    auto = AutoModelForSeq2SeqLM if teacher.name == "t5" else AutoModelForCausalLM
    student = auto.from_pretrained(config.output)
    layers = student.config.num_decoder_layers if teacher.name == "t5" else student.config.num_hidden_layers
    assert layers == 2
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    lines = [json.loads(line) for line in (config.output / "train.jsonl").read_text().splitlines()]
    assert all(0 <= line["alpha"] <= 1 for line in lines if "alpha" in line)
    assert any("alpha" in line for line in lines)
