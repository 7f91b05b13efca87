"""A tiny target, two tiny drafters and a data file on disk, and the command line that benchmarks them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(60)]
N_PROMPTS = 4
NEW_TOKENS = 12


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders target, copy (the same weights), small (other weights) and foreign (another tokenizer)."""
    root = tmp_path_factory.mktemp("models")
    for name, n_layers, seed in (("target", 2, 0), ("copy", 2, 0), ("small", 1, 1), ("foreign", 1, 2)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=n_layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            initializer_range=0.5,
        )
        LlamaForCausalLM(config).save_pretrained(root / name)
        _tokenizer(WORDS[::-1] if name == "foreign" else WORDS).save_pretrained(root / name)
    return root


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="w0"
    )


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of different lengths with references."""
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    rows = [
        {
            "document": " ".join(WORDS[(i * 7 + j) % 60] for j in range(4 + i % 5)),
            "reference": " ".join(WORDS[(i * 5 + j) % 60] for j in range(3 + i % 4)),
        }
        for i in range(N_PROMPTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def bench(models_folder: Path, data_file: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """bench("--seed", "1") -> the words of a ``run`` command line into tmp_path/run, these flags last."""

    def words(*flags: str, drafters: tuple[str, ...] = ("copy", "small")) -> list[str]:
        named = [f"{name}={models_folder / name}" for name in drafters]
        return [
            "run",
            *(["--drafter", *named] if named else []),
            *f"--output {tmp_path / 'run'} --device cpu --threads 1".split(),
            *f"--target.model {models_folder / 'target'} --data.source {data_file} --data.split all".split(),
            "--data.prompt",
            "w1 {document} w2",
            *f"--decoding.gammas 3 --decoding.max-new-tokens {NEW_TOKENS}".split(),
            *flags,
        ]

    return words
