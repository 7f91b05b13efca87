"""A GGUF file is converted once, whatever became of the process that tried before."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, dequantize, quantize
from transformers import AutoModelForCausalLM

from specalign.errors import UserError
from specalign.models import gguf, gguf_tensors
from specalign.models.load import load_model, load_tokenizer
from specalign.models.properties import n_parameters


def test_a_conversion_leaves_the_checkpoint_and_no_part_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, calls = tmp_path / "tiny.gguf", []
    file.write_bytes(b"GGUF")
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path / "cache"))

    def convert(_: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        calls.append(folder)
        if len(calls) == 1:
            raise UserError("no")

    monkeypatch.setattr(gguf, "_convert", convert)
    with pytest.raises(UserError, match="no"):
        gguf.convert_gguf(file)
    assert not calls[0].exists()
    calls[0].mkdir()  # as a killed process leaves it
    (calls[0] / "model.safetensors").write_text("a part")
    made = gguf.convert_gguf(file)
    assert gguf.convert_gguf(file) == made
    assert [path.name for path in made.iterdir()] == ["config.json"]
    assert len(calls) == 2
    assert not calls[0].exists()


WORDS = ["a", "b", "ab", *(f"w{i}" for i in range(57))]
D, FFN, LAYERS = 64, 96, 2


def write_gguf(path: Path, *, head: str) -> Path:
    """A Qwen2 of two layers over 64 ids; ``head``: "none", "same" (as the embedding), "other" type, "f16"."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "qwen2")
    for name, value in (("context_length", 128), ("embedding_length", D), ("block_count", LAYERS)):
        getattr(writer, f"add_{name}")(value)
    for name, value in (("feed_forward_length", FFN), ("head_count", 4), ("head_count_kv", 2)):
        getattr(writer, f"add_{name}")(value)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<pad>", "<s>", "</s>", "<u>", *WORDS])
    writer.add_token_types([3, 3, 3, 3] + [1] * 60)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    embedding = rng.normal(size=(64, D)).astype(np.float32)
    add(writer, "token_embd.weight", embedding, Kind.Q5_0)
    if head == "same":
        add(writer, "output.weight", embedding, Kind.Q5_0)
    elif head == "f16":  # the embedding's own numbers, in another type that holds them exactly
        exact = dequantize(quantize(embedding, Kind.Q5_0), Kind.Q5_0)
        add(writer, "output.weight", exact, Kind.F32)
    elif head == "other":
        add(writer, "output.weight", embedding, Kind.Q8_0)
    add(writer, "output_norm.weight", 1 + 0.1 * rng.normal(size=D).astype(np.float32), Kind.F32)
    for layer in range(LAYERS):
        for name, shape in SHAPES.items():
            kind = Kind.Q8_0 if len(shape) == 2 else Kind.F32
            add(writer, f"blk.{layer}.{name}", rng.normal(size=shape).astype(np.float32) / 8, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SHAPES = {
    "attn_norm.weight": (D,),
    "ffn_norm.weight": (D,),
    "attn_q.weight": (D, D),
    "attn_k.weight": (D // 2, D),
    "attn_v.weight": (D // 2, D),
    "attn_q.bias": (D,),
    "attn_k.bias": (D // 2,),
    "attn_v.bias": (D // 2,),
    "attn_output.weight": (D, D),
    "ffn_gate.weight": (FFN, D),
    "ffn_up.weight": (FFN, D),
    "ffn_down.weight": (D, FFN),
}


def add(writer: GGUFWriter, name: str, values: np.ndarray, kind: Kind) -> None:
    writer.add_tensor(name, values if kind == Kind.F32 else quantize(values, kind), raw_dtype=kind)


@pytest.mark.parametrize(
    ("head", "tied", "said"),
    [
        ("none", True, ""),
        ("same", True, "tied, so that it is there once"),
        ("f16", True, "tied, so that it is there once"),
        ("other", False, r"output.weight (Q8_0) and token_embd.weight (Q5_0) differ by 4."),
    ],
)
def test_a_conversion_is_what_transformers_reads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    head: str,
    tied: bool,
    said: str,
) -> None:
    """Weight by weight, in shards; the same logits, whether or not the head is a second copy of the embedding."""
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_tensors, "SHARD_BYTES", 40_000)
    monkeypatch.setattr(gguf_tensors, "ROWS", 24)
    path = write_gguf(tmp_path / "tiny.gguf", head=head)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    ours = load_model(str(path))
    line = capsys.readouterr().err
    assert said in line
    assert bool(said) == ("output.weight" in line)
    assert ours.config.tie_word_embeddings == tied
    assert n_parameters(ours) == sum(w.numel() for w in theirs.parameters()) - (64 * D if said and tied else 0)
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight), name
    ids = torch.arange(4, 20)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert len(list(gguf.convert_gguf(path).glob("model-*.safetensors"))) > 3
    assert load_tokenizer(str(path)).convert_tokens_to_ids("w5") == 12


def test_a_conversion_holds_little_more_than_a_tensor_and_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has allocated at any time, against the model's size: a whole copy would be 1."""
    monkeypatch.setattr(gguf_tensors, "SHARD_BYTES", 20_000)
    path = write_gguf(tmp_path / "tiny.gguf", head="other")
    alive: list[int] = []
    kept: list[weakref.ref[torch.Tensor]] = []
    real = gguf_tensors._weights

    def watched(*arguments: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in real(*arguments):
            kept.append(weakref.ref(weight))
            alive.append(sum(found.nbytes for ref in kept if (found := ref()) is not None))
            yield name, weight
            del weight

    monkeypatch.setattr(gguf_tensors, "_weights", watched)
    gguf_tensors.write_weights(path, tmp_path, lambda n: None)
    total = sum(file.stat().st_size for file in tmp_path.glob("model-*.safetensors"))
    assert max(alive) <= 20_000 + 2 * 4 * FFN * D < total / 4


def test_a_gguf_that_lacks_a_tensor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delitem(SHAPES, "ffn_up.weight")
    path = write_gguf(tmp_path / "tiny.gguf", head="none")
    with pytest.raises(
        UserError, match=r"tiny\.gguf.*missing from the files: model\.layers\.0\.mlp\.up_proj\.weight"
    ):
        gguf.convert_gguf(path)
    assert not list((tmp_path / "cache" / "models").glob("tiny*"))


def test_what_fits_into_one_file_is_the_file_that_transformers_would_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte by byte, so that a model is known again by the hash that it had when transformers converted it."""
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "tiny.gguf", head="none")
    model = load_model(str(path))
    model.save_pretrained(tmp_path / "saved")
    made = gguf.convert_gguf(path)
    assert not list(made.glob("*.index.json"))
    assert (made / "model.safetensors").read_bytes() == (tmp_path / "saved" / "model.safetensors").read_bytes()
