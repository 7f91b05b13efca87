"""Models that the stages need besides the teacher: a slice of it, random weights, a tiny one for tests."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specalign.models.load import load_model, load_tokenizer
from specalign.models.slicing import choose_layers, slice_layers

SIZES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "qwen2.5-1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
VOCABULARY = 151_936


def main() -> None:
    """Write one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["slice", "random", "tiny"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--teacher", help="slice: of which model")
    parser.add_argument("--layers", type=int, help="slice: how many layers")
    parser.add_argument("--sizes", choices=SIZES, help="random: the sizes of which model")
    parser.add_argument("--tokenizer", help="random: the model whose tokenizer it gets")
    parser.add_argument("--shrink", action="store_true", help="random: two layers and few ids, for a test")
    args = parser.parse_args()
    {"slice": write_slice, "random": write_random, "tiny": write_tiny}[args.kind](args)


def write_slice(args: argparse.Namespace) -> None:
    """Some of a teacher's layers, untrained, with its whole head."""
    teacher = load_model(args.teacher)
    layers = choose_layers(teacher.config.num_hidden_layers, args.layers)
    slice_layers(teacher, layers).save_pretrained(args.output)
    load_tokenizer(args.teacher).save_pretrained(args.output)


def write_random(args: argparse.Namespace) -> None:
    """A real model's sizes and nobody's weights, in bfloat16; no token ends a text.

    Llama layers: they lack Qwen2's three biases, and a folder of theirs may hold any tokenizer.
    """
    sizes = {**SIZES[args.sizes], "vocab_size": VOCABULARY, "tie_word_embeddings": True}
    if args.shrink:
        sizes |= {**SMALL, "num_hidden_layers": 2, "vocab_size": 1024}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=None)).bfloat16()
    model.save_pretrained(args.output)
    load_tokenizer(args.tokenizer).save_pretrained(args.output)


def write_tiny(args: argparse.Namespace) -> None:
    """A teacher of four small layers, and a tokenizer of words that it will hardly meet."""
    torch.manual_seed(0)
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = LlamaConfig(**SMALL, **ids, num_hidden_layers=4, vocab_size=1024, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(args.output)
    words = ["<pad>", "<s>", "</s>", *(f"w{place}" for place in range(60))]
    raw = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="w0"
    )
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
