"""A teacher in 4 bits, for real (bitsandbytes computes NF4 on a CPU too)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specalign.errors import UserError
from specalign.training import folder
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials
from specalign.training.session import train_all

pytest.importorskip("bitsandbytes")


def wide_teacher(folder: Path, tokenizer_of: Path) -> None:
    """Quantisation works on blocks of 64 weights, so the model is a little wider."""
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:bitsandbytes"
)
def test_a_4bit_teacher_trains_a_student(
    tiny: Callable[..., TrainConfig], teacher_folder: Path, tmp_path: Path
) -> None:
    wide_teacher(tmp_path / "wide", teacher_folder)
    teacher = {"model": str(tmp_path / "wide"), "quantization": "4bit"}
    config = tiny("gkd", teacher=teacher, student={"model": str(teacher_folder)}, budget={"steps": 2})
    materials = load_materials(config)
    kinds = {type(module).__name__ for module in materials.teacher.modules()}
    assert "Linear4bit" in kinds
    train_all([config])
    assert folder.read_provenance(config.output)["status"] == "complete"


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:bitsandbytes"
)
def test_a_quantised_teacher_cannot_be_sliced(
    tiny: Callable[..., TrainConfig], teacher_folder: Path, tmp_path: Path
) -> None:
    wide_teacher(tmp_path / "wide", teacher_folder)
    config = tiny("gkd", teacher={"model": str(tmp_path / "wide"), "quantization": "4bit"})
    with pytest.raises(UserError, match="name an existing student"):
        train_all([config])
