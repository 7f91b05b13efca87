"""A checkpoint is read whole, as its config says and in numbers, or refused by a line that names what is wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from specalign.errors import UserError
from specalign.models.gguf import builtin_gguf
from specalign.models.gguf_header import require_whole_gguf
from specalign.models.load import check_weights, load_model
from specalign.models.tiny import make_model

FILE = "model.safetensors"
Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    make_model("llama").float().save_pretrained(tmp_path)
    return tmp_path


def refusal(read: Callable[[str], object], folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(str(folder))
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def changed(folder: Path, change: Change) -> None:
    weights = load_file(folder / FILE)
    change(weights)
    save_file(weights, folder / FILE, metadata={"format": "pt"})


def test_a_whole_checkpoint_passes_and_no_weight_is_read_before_loading(folder: Path) -> None:
    changed(folder, lambda weights: weights["lm_head.weight"].fill_(torch.nan))
    assert check_weights(str(folder)) == "1 file, all keys and shapes as config.json says"
    assert "lm_head.weight" in refusal(load_model, folder)


@pytest.mark.parametrize("read", [check_weights, load_model])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("lm_head.weight"), "missing from the files: lm_head.weight"),
        (
            lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"),
            "missing from the files: model.layers.1.mlp.up_proj.weight",
        ),
        (lambda weights: weights.update(extra=torch.zeros(2)), "unknown to the model: extra"),
        (
            lambda weights: weights.update({"model.norm.weight": torch.ones(7)}),
            r"of another shape: model.norm.weight [7] instead of [32]",
        ),
    ],
)
def test_keys_that_the_config_does_not_describe_are_named(
    folder: Path, read: Callable[[str], object], change: Change, named: str
) -> None:
    changed(folder, change)
    assert named in refusal(read, folder)


@pytest.mark.parametrize("read", [check_weights, load_model])
@pytest.mark.parametrize(("n_layers", "word"), [(5, "missing from the files"), (2, "unknown to the model")])
def test_another_number_of_layers_than_the_files_have_is_no_random_layer(
    folder: Path, read: Callable[[str], object], n_layers: int, word: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": n_layers}))
    assert word in refusal(read, folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_no_numbers_are_named(folder: Path, value: float, dtype: torch.dtype) -> None:
    changed(folder, lambda weights: weights["model.layers.2.mlp.down_proj.weight"][3].fill_(value))
    message = refusal(lambda name: load_model(name, dtype=dtype), folder)
    assert "no finite numbers (NaN or infinity): model.layers.2.mlp.down_proj.weight" in message


def test_logits_that_overflow_are_named_with_the_dtype(folder: Path) -> None:
    def large(weights: dict[str, Tensor]) -> None:
        weights["model.layers.0.mlp.down_proj.weight"].fill_(1e3)
        weights["model.layers.0.mlp.up_proj.weight"].fill_(1e3)

    changed(folder, large)
    load_model(str(folder))
    message = refusal(lambda name: load_model(name, dtype=torch.float16), folder)
    assert "its logits are no finite numbers (NaN or infinity) in float16" in message
    assert "float32" in message


HUGE = (90_000_000).to_bytes(8, "little") + b"[" * 10_000


@pytest.mark.parametrize("read", [check_weights, load_model])
@pytest.mark.parametrize(
    "content", [b"", b"\x02", b"garbage " * 99, b"\xff" * 99, (2).to_bytes(8, "little") + b"[]", HUGE]
)
def test_a_file_that_is_none_is_named(folder: Path, read: Callable[[str], object], content: bytes) -> None:
    (folder / FILE).write_bytes(content)
    assert f"{FILE} ({len(content):,} bytes) is damaged or incomplete" in refusal(read, folder)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_named(folder: Path, share: float) -> None:
    path = folder / FILE
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: int(share * len(whole))])
        assert "is damaged or incomplete" in refusal(check_weights, folder)
    finally:
        path.write_bytes(whole)


def test_a_folder_without_weights_says_which_are_read(folder: Path) -> None:
    (folder / FILE).unlink()
    for read in (check_weights, load_model):
        assert "only models with safetensors weights are read" in refusal(read, folder)


def gguf(*, tensors: int = 1, fields: int = 1, size: int = 64, dimension: int = 8, offset: int = 0) -> bytes:
    """A GGUF file of one field and one float32 tensor, or what states other numbers than it has."""
    text = struct.pack("<Q", 3) + b"key" + struct.pack("<II", 4, 7)
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, dimension, 0, offset)
    header = b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + text + tensor
    return header + bytes(-len(header) % 32) + bytes(size)


def test_a_whole_gguf_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf())
    require_whole_gguf(path)


@pytest.mark.parametrize(
    "lie",
    [
        {"tensors": 2},
        {"tensors": 2**60},
        {"fields": 40},
        {"fields": 2**63},
        {"size": 31},
        {"dimension": 17},
        {"dimension": 2**62},
        {"offset": 40},
        {"offset": 2**63},
    ],
    ids=str,
)
def test_a_gguf_that_states_more_than_it_holds_is_refused_at_once(tmp_path: Path, lie: dict[str, Any]) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf(**lie))
    with pytest.raises(UserError, match=r"cannot convert .*a\.gguf \([\d,]+ bytes\): it is no whole GGUF file"):
        load_model(str(path))


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200).map(lambda rest: b"GGUF\x03\0\0\0" + rest))
def test_any_bytes_are_a_gguf_or_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    try:
        require_whole_gguf(path)
    except UserError as error:
        assert "no whole GGUF file" in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.slow
def test_the_builtin_gguf_is_whole_and_half_of_it_is_not(tmp_path: Path) -> None:
    path = builtin_gguf("smollm2")
    require_whole_gguf(path)
    half = tmp_path / "half.gguf"
    half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"tensor .* needs"):
        require_whole_gguf(half)
