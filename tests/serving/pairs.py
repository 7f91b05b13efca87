"""A tiny target and drafters of it, made as users make theirs, that vLLM serves within a minute."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specalign.models.servable import block, response_states
from specalign.models.vocabulary import load_draft_vocabulary
from specalign.training.cli import configs
from specalign.training.export import ExportConfig, export
from specalign.training.session import train_all

WORDS = [f"w{i}" for i in range(60)]
WIDTHS = {"narrow": 64, "wide": 80}
"""Rows of drafters; the target has 72, of which those from the 64th on mean nothing and are never drawn. As Qwen2.5-7B
and 0.5B have 152,064 and 151,936, and one that is wider."""
PROMPT = "w1 {document}"
TRAINED = """--device cpu --data.max-prompt-tokens 16 --data.max-response-tokens 24 --rollout.source teacher
--rollout.style full --optimiser.batch 8 --optimiser.lr 3e-3 --budget.steps 40 --result.keep last"""
HOW = {
    "head": "--method distillspec --student.kind head --student.draft-vocabulary 40",
    "trimmed": "--method contrastive --student.n-layers 2 --student.draft-vocabulary 40",
    "parallel": "--method distillspec --student.n-layers 2 --student.parallel 3",
}
"""Drafter -> how it is trained."""


def make_pairs(root: Path) -> None:
    """Folders target and narrow and wide, which are the target with noise and another width; what HOW trains; exports.

    And train.jsonl, validation.jsonl in ``data``, of which the target and its drafters know no more than the words.
    """
    target = _model()
    ids = torch.randint(3, 63, (100, 2, 20)).tolist()
    block(target, 72, None, response_states(target, [(prompt, response) for prompt, response in ids]))
    for name, model in {"target": target, **{name: _noisy(width) for name, width in WIDTHS.items()}}.items():
        model.save_pretrained(root / name)
        _tokenizer().save_pretrained(root / name)
    write_rows(root / "data" / "train.jsonl", range(128))
    write_rows(root / "data" / "validation.jsonl", range(128, 132))
    for name, how in HOW.items():
        words = (
            f"{how} {TRAINED} --teacher.model {root}/target --data.source {root}/data --output {root / name}"
        )
        train_all(configs([*words.split(), "--data.prompt", PROMPT]))
    _move_untrained_rows(root / "trimmed")
    for name in ("narrow", "wide", "trimmed"):
        export(str(root / name), ExportConfig(output=served(root, name), target=f"{root}/target", prompts=64))


def served(root: Path, name: str) -> Path:
    """What vLLM is given of a drafter."""
    return root / (f"{name}-served" if name in {"narrow", "wide", "trimmed"} else name)


def write_rows(path: Path, numbers: range) -> None:
    """Documents of four to eight words."""
    path.parent.mkdir(exist_ok=True)
    rows = [" ".join(Random(i).choices(WORDS, k=4 + i % 5)) for i in numbers]
    path.write_text("".join(json.dumps({"document": row, "reference": "w1"}) + "\n" for row in rows))


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # the final states of trained models have a direction in common
        next(model.get_input_embeddings().parameters())[:, 0] += 3
    return model


def _noisy(width: int) -> LlamaForCausalLM:
    model = _model()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.add_(0.1 * weight.std() * torch.randn_like(weight))
    model.resize_token_embeddings(width, mean_resizing=False)
    return model


def _move_untrained_rows(folder: Path) -> None:
    """As far as a long training by a ranking loss moves the others, which leaves these where they were."""
    model, kept = LlamaForCausalLM.from_pretrained(folder), load_draft_vocabulary(folder)
    assert kept is not None
    with torch.no_grad():
        rows = model.lm_head.weight
        rows[torch.isin(torch.arange(len(rows)), kept, invert=True)] *= 2
    model.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "w0"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **tokens)
