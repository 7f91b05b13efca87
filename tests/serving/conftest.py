"""Servers that stand in for vLLM's, and a tiny suite for them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.serving.fake_vllm import Fake, start

WORDS = [f"w{i}" for i in range(60)]
DECODING = "--decoding.temperatures 0 --decoding.max-new-tokens 12"
Serve = Callable[[Fake], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(Fake(gamma=3)) -> the URL of a server that stands in for vLLM's."""
    running: list[ThreadingHTTPServer] = []

    def make(fake: Fake) -> str:
        running.append(start(fake))
        return f"http://127.0.0.1:{running[-1].server_address[1]}"

    yield make
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def vllm_python(tmp_path: Path) -> Callable[[str], str]:
    """vllm_python("0.32.0") -> a "Python" whose vLLM has this version and serves as fake_vllm.py does."""

    def make(version: str) -> str:
        path = tmp_path / "python"
        fake = Path(__file__).with_name("fake_vllm.py")
        path.write_text(
            f'#!/bin/sh\nif [ "$1" = -c ]; then echo "{version}"; exit; fi\n'
            f'shift 2\nexec "{sys.executable}" "{fake}" "$@"\n'
        )
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture(scope="session")
def suite_flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a run: a tiny target and drafter, four prompts, drafts of three tokens."""
    root = tmp_path_factory.mktemp("served")
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="w0"
    )
    for name in ("target", "small", "missing"):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    data = root / "prompts.jsonl"
    rows = [{"document": " ".join(WORDS[7 * i : 7 * i + 3]), "reference": "w1 w2"} for i in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = f"--target.model {root / 'target'} --data.source {data} --data.split all --drafter small={root / 'small'}"
    rest = f"--include --device cpu --threads 1 --engine vllm --decoding.gammas 3 {DECODING}"
    return [*paths.split(), *rest.split(), "--data.prompt", "w1 {document}"]
