"""Every family trains and is benchmarked: Llama's kin, Gemma's normalised outputs, T5's decoder and encoder."""

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
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from specalign.benchmarks.cli import parse_run
from specalign.benchmarks.runner import run
from specalign.errors import UserError
from specalign.training.config import TrainConfig
from specalign.training.folder import read_provenance
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
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER | {"tie_word_embeddings": True})),
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
    if (
        request.param == "qwen2"
    ):  # transformers gives Qwen2 its own byte-level tokenizer, whatever the file says
        tokens = ["<pad>", "<s>", "</s>", "Ġ", "w", *"0123456789", "Ġw"]
        merges: Any = [("Ġ", "w")]
        Qwen2Tokenizer(
            vocab={token: id_ for id_, token in enumerate(tokens)},
            merges=merges,
            unk_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
        ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["aligned", "sft", "gkd", "distillspec", "contrastive"])
def test_each_method_trains_each_family(teacher: Path, method: str, tiny: Callable[..., TrainConfig]) -> None:
    """A plain checkpoint of the teacher's class with two decoder layers, finite figures all the way."""
    config = tiny(method, teacher={"model": str(teacher)})
    train_all([config])
    auto = AutoModelForSeq2SeqLM if teacher.name == "t5" else AutoModelForCausalLM
    student = auto.from_pretrained(config.output)
    layers = student.config.num_decoder_layers if teacher.name == "t5" else student.config.num_hidden_layers
    assert layers == 2
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    lines = [json.loads(line) for line in (config.output / "train.jsonl").read_text().splitlines()]
    assert all(0 <= line["alpha"] <= 1 for line in lines if "alpha" in line)
    assert any("alpha" in line for line in lines)


def test_each_family_is_benchmarked(
    teacher: Path, tiny: Callable[..., TrainConfig], data_folder: Path, tmp_path: Path
) -> None:
    """A drafter that was trained a little, through the command line: lossless, and better than nothing."""
    config = tiny(
        "distillspec",
        teacher={"model": str(teacher)},
        student={"n_layers": 3, "pick": "influence"}
        | ({"n_encoder_layers": 3} if teacher.name == "t5" else {}),
        rollout={"style": "full"},
        budget={"steps": 2},
        logging={"validate_every": 0},
    )
    train_all([config])
    words = f"--drafter slice={config.output} self={teacher} --target.model {teacher} --device cpu".split()
    words += f"--data {data_folder} --data.split validation --limit 1 --output {tmp_path / 'bench'}".split()
    words += ["--include", "--decoding.max-new-tokens", "8", "--decoding.gammas", "3"]
    result = run(parse_run([*words, "--data.prompt", "w1 {document} w2"]))
    assert (result.status, result.n_failed) == ("complete", 0)
    assert {check.name: check.passed for check in result.checks}["lossless"]
    accepted = {(row.method, row.temperature): row.alpha_expected for row in result.rows}
    for temperature in (0.0, 1.0):
        itself, ours = accepted["self", temperature], accepted["slice", temperature]
        assert itself is not None
        assert ours is not None
        assert itself.value == pytest.approx(1, abs=1e-4)
        assert 0 <= ours.value <= 1


@pytest.mark.parametrize("teacher", [name for name in TEACHERS if name != "t5"], indirect=True)
def test_a_head_is_fitted_trained_and_benchmarked_on_each_family(
    teacher: Path, tiny: Callable[..., TrainConfig], data_folder: Path, tmp_path: Path
) -> None:
    """Norms on queries and keys, scaled embeddings, soft-caps, windows: what it drafts with is Llama's layer anyhow."""
    config = tiny(
        "distillspec",
        teacher={"model": str(teacher)},
        student={"kind": "head"},
        budget={"steps": 2},
        logging={"validate_every": 0},
    )
    train_all([config])
    words = f"--drafter head={config.output} --target.model {teacher} --device cpu --data {data_folder}".split()
    words += f"--data.split validation --limit 1 --output {tmp_path / 'bench'}".split()
    words += ["--decoding.max-new-tokens", "8"]
    result = run(parse_run([*words, "--decoding.gammas", "3", "--data.prompt", "w1 {document} w2"]))
    assert (result.status, result.n_failed) == ("complete", 0)
    assert {check.name: check.passed for check in result.checks}["lossless"]
    accepted = [row.alpha_expected for row in result.rows if row.method == "head"]
    assert all(share is not None and 0 <= share.value <= 1 for share in accepted)
    assert len(accepted) == 2


def test_a_head_for_an_encoder_decoder_teacher_is_one_line(
    tiny: Callable[..., TrainConfig], teacher_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "t5"
    shutil.copytree(teacher_folder, folder)
    TEACHERS["t5"]().save_pretrained(folder)
    with pytest.raises(
        UserError, match="a head drafts for decoder-only targets; this one is an encoder-decoder"
    ):
        train_all([tiny("distillspec", teacher={"model": str(folder)}, student={"kind": "head"})])


def test_both_towers_of_t5_are_sliced_and_aligned(
    tiny: Callable[..., TrainConfig], teacher_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "t5"
    shutil.copytree(teacher_folder, folder)
    torch.manual_seed(0)
    TEACHERS["t5"]().save_pretrained(folder)
    config = tiny("aligned", teacher={"model": str(folder)}, student={"n_encoder_layers": 2})
    train_all([config])
    student = AutoModelForSeq2SeqLM.from_pretrained(config.output)
    assert (student.config.num_layers, student.config.num_decoder_layers) == (2, 2)
    assert {"alignment_encoder", "alignment_decoder"} <= set(read_provenance(config.output)["prepare_s"])
