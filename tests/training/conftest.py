"""A tiny teacher on disk, with its tokenizer, and recipes over a tiny data file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specalign.training.config import TrainConfig
from specalign.training.recipe import overlay, resolve
from specalign.training.student_config import StudentConfig

WORDS = [f"w{i}" for i in range(60)]


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-layer Llama over 64 ids, of which the last one means nothing, and a word tokenizer of 63."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {word: id_ for id_, word in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="w0"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl and validation.jsonl with documents of different lengths."""
    folder = tmp_path_factory.mktemp("data")
    for split, numbers in (("train", range(12)), ("validation", range(12, 16))):
        rows = [
            {
                "document": " ".join(WORDS[(i * 7 + j) % 60] for j in range(4 + i % 5)),
                "reference": " ".join(WORDS[(i * 5 + j) % 60] for j in range(3 + i % 4)),
            }
            for i in numbers
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def tiny(
    teacher_folder: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TrainConfig]:
    """tiny("gkd", optimiser={"lr": 0.1}) -> a config whose run takes a second."""
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path / "cache"))

    def make(method: str = "gkd", **changes: Any) -> TrainConfig:
        kind = changes.get("student", {}).get("kind")
        base = resolve(TrainConfig(student=StudentConfig(kind=kind)), None, method)
        settings: dict[str, Any] = {
            "output": tmp_path / "run",
            "device": "cpu",
            "teacher": {"model": str(teacher_folder), "dtype": "float32"},
            "student": {"n_layers": 2, "align_tokens": 100},
            "data": {
                "source": str(data_folder),
                "prompt": "w1 {document} w2",
                "max_prompt_tokens": 16,
                "max_response_tokens": 6,
            },
            "rollout": {"branches": 3, "batch": 4},
            "optimiser": {"batch": 2, "accumulation": 2, "lr": 3e-3},
            "logging": {"every": 1, "validate_every": 2, "checkpoint_every": 2},
            "result": {"keep": "last"},  # tests compare what training does; test_ending.py has the best weights
        }
        if method not in ("untrained", "aligned"):
            settings["budget"] = {"steps": 4}
        config = overlay(base, settings, None)
        return overlay(config, changes, None) if changes else replace(config)

    return make
