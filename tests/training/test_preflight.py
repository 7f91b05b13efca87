"""specalign-train check: everything that would stop a run is found before a weight is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from specalign.errors import UserError
from specalign.preflight import Finding
from specalign.training.cli import configs
from specalign.training.config import TrainConfig
from specalign.training.preflight import findings
from specalign.training.recipe import overlay
from specalign.training.session import train_all

FOLDER = Path(__file__).parents[2] / "training"
Tiny = Callable[..., TrainConfig]


def found(*configs: TrainConfig) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings(configs, data=True)}


def failures(*configs: TrainConfig) -> str:
    return " | ".join(finding.detail for finding in found(*configs).values() if finding.verdict == "failed")


def test_a_sound_recipe_passes(tiny: Tiny) -> None:
    checks = found(tiny("gkd"), tiny("sft"))
    assert {finding.verdict for finding in checks.values()} <= {"ok", "note"}
    assert checks["student"].detail == "layers 0, 3 of the teacher's 4, aligned"
    assert checks["vocabulary"].detail == "64 rows for 63 ids; the 1 others are left out"
    assert checks["training rows"].detail == "the first 12 are read; 12 have a reference"
    assert {"method gkd", "method sft", "memory, gkd", "memory, sft"} <= set(checks)


def test_arms_with_other_students_are_all_checked(tiny: Tiny) -> None:
    """And what is the same for two of them stands in the table once."""
    arms = [tiny("gkd", seed=1), tiny("gkd", seed=2), tiny("gkd", student={"n_layers": 9})]
    checks = findings(arms, data=False)
    assert [finding.verdict for finding in checks if finding.check == "student"] == ["ok", "failed"]
    assert [finding.check for finding in checks].count("method gkd") == 1


def test_no_weight_is_read_but_their_headers_are(tiny: Tiny, teacher_folder: Path, tmp_path: Path) -> None:
    """Weights that are all NaN would stop a run, and a file that is cut does so here."""
    shutil.copytree(teacher_folder, tmp_path / "outline")
    path = tmp_path / "outline" / "model.safetensors"
    weights = {name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    config = tiny(teacher={"model": str(tmp_path / "outline")})
    assert not failures(config)
    path.write_bytes(path.read_bytes()[:-1])
    assert "model.safetensors" in failures(config)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"device": "cuda:9"}, "this machine has"),
        (
            {"teacher": {"model": "./nowhere"}},
            "no such model folder: ./nowhere (on the hub a model is owner/name)",
        ),
        ({"teacher": {"quantization": "4bit"}}, "name an existing student.model"),
        ({"student": {"n_layers": 9}}, "choose 2 to 4"),
        ({"student": {"layers": (0, 2)}}, "layers must rise from 0 to 3"),
        ({"data": {"max_prompt_tokens": 60}}, "= 66 exceed the teacher's context of 64; lower one of them"),
        ({"data": {"document": "article"}}, "no column 'article' (columns: document, reference)"),
        ({"data": {"source": "nowhere.jsonl"}}, "no such data file: nowhere.jsonl"),
        ({"data": {"template": "chat"}}, 'the tokenizer has no chat template; use template = "plain"'),
        ({"data": {"max_prompt_tokens": 2}}, "max_prompt_tokens = 2 leaves no room"),
        ({"objective": {"weights": {"forwardkl": 1.0}}}, "did you mean 'forward_kl'"),
        ({"student": {"model": "x/y/z"}}, "no such model folder: x/y/z"),
    ],
)
def test_what_would_stop_a_run_is_named_with_its_remedy(
    tiny: Tiny, changes: dict[str, Any], remedy: str
) -> None:
    assert remedy in failures(tiny("gkd", **changes))


def test_an_encoder_decoder_teacher_passes(tiny: Tiny, teacher_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(
        teacher_folder, tmp_path / "t5", ignore=shutil.ignore_patterns("*.safetensors", "*config.json")
    )
    shutil.copy(teacher_folder / "tokenizer_config.json", tmp_path / "t5")
    sizes: dict[str, Any] = {"vocab_size": 64, "d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 3}
    config = T5Config(**sizes | {"num_heads": 1, "decoder_start_token_id": 0})
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    teacher = {"model": str(tmp_path / "t5")}
    assert not failures(tiny("gkd", teacher=teacher))
    served = failures(tiny("gkd", teacher=teacher, engine={"name": "vllm", "endpoint": "http://127.0.0.1:9"}))
    assert "vLLM serves no encoder-decoder text models" in served


def test_memory_that_cannot_suffice_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specalign.models.preflight.device_memory_bytes", lambda _device: 1000)
    assert "choose a smaller student" in failures(tiny("gkd"))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_checks_and_starts(
    path: Path, tiny: Tiny, data_folder: Path, teacher_folder: Path
) -> None:
    """With a tiny pair and data of its own in the place of what it names; one step."""
    shipped = configs(["--recipe", str(path)])[-1]
    replaced: dict[str, Any] = {
        "output": tiny().output,
        "attn": "auto",
        "teacher": {"model": str(teacher_folder)},
        "student": {"model": str(teacher_folder)} if shipped.student.model else {"n_layers": 2},
        "data": {
            "source": str(data_folder),
            "max_prompt_tokens": 40,
            "max_response_tokens": 6,
            "n_train": 8,
            "n_test": 0,
        },
        "optimiser": {"accumulation": 1},
        "budget": {"steps": 1, "seconds": 0.0},
    }
    config = overlay(shipped, replaced, None)
    assert not failures(config)
    train_all([config])
    assert (config.output / "model.safetensors").is_file()


def test_a_run_checks_its_models_before_it_loads_them(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "specalign.training.teacher.load_model", lambda *_, **__: pytest.fail("weights were loaded")
    )
    with pytest.raises(UserError, match="choose 2 to 4"):
        train_all([tiny("gkd", student={"n_layers": 9})])
    with pytest.raises(UserError, match="leaves no room"):
        train_all([tiny("gkd", data={"max_prompt_tokens": 2})])


@pytest.mark.parametrize(
    ("size", "verdict", "detail"),
    [
        (
            2,
            "failed",
            "student.draft_vocabulary = 2 leaves no room for text beside 4 special tokens; choose 5 to 62",
        ),
        (20, "ok", "20 of 63 ids"),
        (100, "note", "trims nothing: the tokenizer has 63 ids"),
    ],
)
def test_a_draft_vocabulary_that_is_no_use(tiny: Tiny, size: int, verdict: str, detail: str) -> None:
    finding = found(tiny("gkd", student={"draft_vocabulary": size}))["draft vocabulary"]
    assert finding.verdict == verdict
    assert detail in finding.detail
