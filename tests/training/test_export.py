"""specalign-train export: what engines can serve comes out, nothing else is touched, and mistakes are one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from specalign.errors import UserError
from specalign.models.eagle import load_head
from specalign.models.load import load_model
from specalign.models.tiny import make_model
from specalign.models.vocabulary import load_draft_vocabulary
from specalign.training import export
from specalign.training.cli import main
from specalign.training.config import TrainConfig
from specalign.training.session import train_all

Tiny = Callable[..., TrainConfig]


@pytest.fixture
def leaning(teacher_folder: Path, tmp_path: Path) -> Path:
    """The tiny teacher with a direction that its final states have in common, as those of trained models do."""
    folder = tmp_path / "leaning"
    shutil.copytree(teacher_folder, folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        next(model.get_input_embeddings().parameters())[:, 0] += 8
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def student(tiny: Tiny, leaning: Path) -> Path:
    """A slice with 20 of 64 rows."""
    config = tiny("untrained", teacher={"model": str(leaning)}, student={"n_layers": 2, "draft_vocabulary": 20})
    train_all([config])
    return config.output


def test_a_trimmed_drafter_is_exported_with_a_head_that_drafts_alike(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in student.rglob("*") if path.is_file()}
    main(["export", str(student), "--output", str(tmp_path / "served"), "--prompts", "6"])
    assert {path: path.read_bytes() for path in student.rglob("*") if path.is_file()} == before
    assert "44 untrained ones cannot win" in capsys.readouterr().out
    served, trimmed = (load_model(str(folder)) for folder in (tmp_path / "served", student))
    kept = load_draft_vocabulary(student)
    assert kept is not None
    assert load_draft_vocabulary(tmp_path / "served") is None
    ids = torch.tensor([[5, 9, 31, 7, 12]])
    with torch.inference_mode():
        ours, theirs = (model(input_ids=ids).logits for model in (served, trimmed))
    assert torch.equal(kept[theirs[..., kept].argmax(-1)], ours.argmax(-1))
    assert AutoTokenizer.from_pretrained(tmp_path / "served").vocab_size == 63
    facts = json.loads((tmp_path / "served" / "provenance.json").read_text())
    assert facts["method"] == "untrained"
    assert facts["exported"]["n_rows"] == 44
    assert facts["exported"]["largest_mass"] < 1e-3


def test_rows_are_padded_to_the_targets_width(student: Path, leaning: Path, tmp_path: Path) -> None:
    """As vLLM wants it of Qwen2.5-0.5B (151,936 rows) under Qwen2.5-7B (152,064)."""
    wide = tmp_path / "wide"
    shutil.copytree(leaning, wide)
    model = LlamaForCausalLM.from_pretrained(wide)
    model.resize_token_embeddings(72, mean_resizing=False)
    model.save_pretrained(wide)
    main(
        ["export", str(student), "--target", str(wide), "--output", str(tmp_path / "served"), "--prompts", "6"]
    )
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "served")
    assert served.config.vocab_size == served.lm_head.out_features == 72


def test_exports_that_need_none_or_cannot_be_are_one_line(
    student: Path, leaning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    for words, told in (
        ([str(leaning), "--target", str(leaning), "--output", out], "needs no export"),
        ([str(leaning), "--output", out], "--target"),
        ([str(student), "--output", str(student)], "not empty"),
        ([str(student), "--output", out, "--prompts", "1"], "2"),
        ([str(student), "--output", out, "--promts", "8"], "promts"),
        ([str(student)], "--output"),
        (["nowhere", "--output", out], "nowhere"),
    ):
        with pytest.raises(UserError, match=told) as error:
            main(["export", *words])
        assert "\n" not in str(error.value)
        assert not Path(out).exists() or not any(Path(out).iterdir())


def test_a_mask_token_beyond_the_targets_rows_cannot_be_served() -> None:
    model = make_model("llama")
    model.config.pard_token = 39
    with pytest.raises(UserError, match="its mask token 39 lies beyond the target's 39 rows"):
        export._require_exportable("runs/wide", model, 39, None)


@pytest.fixture
def head(tiny: Tiny) -> Path:
    """Of the tiny teacher's 4 layers, whose states it reads before the last ones end; 20 of 64 rows."""
    student = {"kind": "head", "start": "random", "reads": (1, 2, 3), "draft_vocabulary": 20}
    config = tiny("untrained", student=student)
    train_all([config])
    return config.output


def test_a_head_is_exported_under_sglangs_names(head: Path, tmp_path: Path) -> None:
    """Names and shapes of LlamaForCausalLMEagle3 (sgl-project/sglang, python/sglang/srt/models/llama_eagle3.py)."""
    main(["export", str(head), "--output", str(tmp_path / "sglang")])
    layer = {"hidden_norm": [16], "input_layernorm": [16], "post_attention_layernorm": [16]}
    attention = {"q_proj": [16, 32], "k_proj": [8, 32], "v_proj": [8, 32], "o_proj": [16, 16]}
    mlp = {"gate_proj": [24, 16], "up_proj": [24, 16], "down_proj": [16, 24]}
    tensors = load_file(tmp_path / "sglang" / "model.safetensors")
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "embed_tokens.weight": [64, 16],
        "fc.weight": [16, 48],
        **{f"midlayer.{name}.weight": shape for name, shape in layer.items()},
        **{f"midlayer.self_attn.{name}.weight": shape for name, shape in attention.items()},
        **{f"midlayer.mlp.{name}.weight": shape for name, shape in mlp.items()},
        "norm.weight": [16],
        "lm_head.weight": [20, 16],
        "d2t": [20],
    }
    assert tensors["d2t"].dtype == torch.int64
    config = json.loads((tmp_path / "sglang" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 1)
    assert (config["vocab_size"], config["draft_vocab_size"], config["target_hidden_size"]) == (64, 20, 16)
    assert config["tie_word_embeddings"] is False
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 1, 2]  # by what leaves them
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "sglang"), LlamaConfig)
    assert AutoTokenizer.from_pretrained(tmp_path / "sglang").vocab_size == 63


def test_sglangs_folder_is_the_same_head_here(head: Path, tmp_path: Path) -> None:
    main(["export", str(head), "--output", str(tmp_path / "sglang")])
    ours, theirs = (load_head(str(folder)) for folder in (head, tmp_path / "sglang"))
    assert theirs.config.reads == (1, 2, 3)
    assert theirs.config.layer.to_dict() == ours.config.layer.to_dict()
    weights = theirs.state_dict()
    assert weights.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in ours.state_dict().items())


def test_a_head_that_sglang_would_read_otherwise_is_refused(tiny: Tiny, head: Path, tmp_path: Path) -> None:
    last = tiny("untrained", student={"kind": "head", "start": "random"}, output=tmp_path / "last")
    train_all([last])
    out = tmp_path / "sglang"
    with pytest.raises(UserError, match=r"enters layers 1 to 3 .* reads 2, 3, 4: train one with"):
        main(["export", str(last.output), "--output", str(out)])
    config = json.loads((head / "config.json").read_text())
    for changes, message in (
        ({"norm_before_residual": True}, "norm_before_residual"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}, "reads 0, 1, 2"),
        ({"speculators_config": None}, "--target"),
    ):
        (head / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=message):
            main(["export", str(head), "--output", str(out)])
    assert not out.exists()
