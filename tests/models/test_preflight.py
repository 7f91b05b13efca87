"""What configs and tokenizers tell: each trap of a pair is found without a weight, and its remedy is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    Gemma2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    T5Config,
)

from specalign.errors import UserError
from specalign.models import preflight
from specalign.models.preflight import Outline
from specalign.preflight import Caution, Finding, examine, report, require_passed

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
T5: dict[str, Any] = {"vocab_size": 8, "d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1}
WORDS = ("<pad>", "</s>", "a", "b", "c", "d")


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """made(config, *words) -> the outline of a model folder that has no weights at all."""

    def make(config: PreTrainedConfig, *words: str, template: str = "") -> Outline:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        config.save_pretrained(folder)
        raw = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words or WORDS)}, unk_token="a"))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw, unk_token="a", pad_token="<pad>", eos_token="</s>"
        )
        tokenizer.chat_template = template or None
        tokenizer.save_pretrained(folder)
        return preflight.outline(str(folder))

    return make


def caution(found: str | Caution) -> str:
    assert isinstance(found, Caution)
    return found.text


def test_an_outline_reads_no_weights(made: Any) -> None:
    found = made(LlamaConfig(**SIZES))
    assert found.model.device.type == "meta"
    assert preflight.describe(found) == (
        "LlamaForCausalLM, decoder-only, 0.0 M parameters (0.0 M of them a head apart from the embedding), "
        "3 decoder layers"
    )
    tied = made(LlamaConfig(**SIZES, tie_word_embeddings=True))
    assert preflight.describe(tied) == "LlamaForCausalLM, decoder-only, 0.0 M parameters, 3 decoder layers"


def test_the_first_differing_id_is_named(made: Any) -> None:
    teacher, same = made(LlamaConfig(**SIZES)), made(LlamaConfig(**SIZES))
    other = made(LlamaConfig(**SIZES), "<pad>", "</s>", "a", "x", "c", "d")
    assert preflight.check_same_ids(same, teacher) == "all 6 ids mean the same"
    with pytest.raises(UserError, match="id 3 is 'x' for the student and 'b' for the teacher"):
        preflight.check_same_ids(other, teacher)


def test_a_head_without_a_row_for_every_id_is_refused(made: Any) -> None:
    assert preflight.check_width(made(Qwen2Config(**SIZES))) == "8 rows for 6 ids; the 2 others are left out"
    narrow = made(Qwen2Config(**SIZES | {"vocab_size": 4}))
    with pytest.raises(UserError, match=r"ids up to 5, but its head has 4 rows; use the tokenizer that"):
        preflight.check_width(narrow)


def test_models_of_different_kinds_are_refused(made: Any) -> None:
    causal, both = made(LlamaConfig(**SIZES)), made(T5Config(**T5))
    assert preflight.check_same_kind(both, both) == "both encoder-decoder"
    with pytest.raises(UserError, match="different kinds; choose two models of one family"):
        preflight.check_same_kind(causal, both)


def test_attention_by_architecture(made: Any) -> None:
    """Each gets what its class supports; what it does not support is refused, flash without a GPU is replaced."""
    llama, t5 = made(LlamaConfig(**SIZES)), made(T5Config(**T5))
    assert preflight.check_attention(llama, "auto", CPU) == "sdpa (supported: eager, sdpa, flash_attention_2)"
    assert str(preflight.check_attention(llama, "eager", CPU)).startswith("eager")
    found = preflight.check_attention(llama, "flash_attention_2", CPU)
    assert found == Caution("flash_attention_2 needs a CUDA device; sdpa is used instead")
    assert "flash" not in str(preflight.check_attention(t5, "auto", CPU))
    gemma = made(Gemma2Config(**SIZES))
    if not type(gemma.model)._supports_sdpa:
        with pytest.raises(UserError, match=r"does not support attn = 'sdpa'; use auto, or one of: eager"):
            preflight.check_attention(gemma, "sdpa", CPU)


def test_flash_attention_needs_its_package_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert preflight.flash_needs(torch.device("cuda")) == "the package flash-attn"
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    assert preflight.flash_needs(torch.device("cuda")) == ""


def test_context_lengths(made: Any) -> None:
    short = made(LlamaConfig(**SIZES, max_position_embeddings=16))
    assert preflight.check_context(short, "teacher", (10, 6), ("a", "b")) == "16 of 16 positions"
    with pytest.raises(UserError, match=r"a \+ b = 17 exceed the teacher's context of 16; lower one of them"):
        preflight.check_context(short, "teacher", (10, 7), ("a", "b"))
    assert preflight.check_context(made(T5Config(**T5)), "teacher", (10**6, 1), ("a", "b")).startswith(
        "relative"
    )


def test_a_context_that_position_scaling_shortens_says_so(made: Any) -> None:
    table = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    scaled = table | {"factor": 4.0, "original_max_position_embeddings": 16}
    model = made(LlamaConfig(**SIZES, max_position_embeddings=64, rope_parameters=scaled))
    assert preflight.check_context(model, "teacher", (10, 6), ("a", "b")) == "16 of 16 positions"
    with pytest.raises(
        UserError, match=r"the teacher's context of 16 \(beyond it, its longrope scaling changes"
    ):
        preflight.check_context(model, "teacher", (10, 7), ("a", "b"))


def test_the_end_of_a_text(made: Any) -> None:
    assert preflight.check_end(made(LlamaConfig(**SIZES)), 1) == "texts end with 1 '</s>'"
    never = made(LlamaConfig(**SIZES | {"eos_token_id": None}))
    assert "add eos_token_id to config.json" in caution(preflight.check_end(never, None))
    assert "texts end with nothing, by its tokenizer turns end with 1" in caution(preflight.check_end(never, 1))
    other = made(LlamaConfig(**SIZES | {"eos_token_id": 3}))
    assert "turns end with 1 '</s>': decoding stops there too" in caution(preflight.check_end(other, 1))
    with pytest.raises(UserError, match="decoder_start_token_id; add it to its config"):
        preflight.check_end(made(T5Config(**T5)), 1)


def test_the_generation_config_wins_over_the_config(made: Any) -> None:
    model = made(LlamaConfig(**SIZES))
    Path(model.name, "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 4]}))
    found = preflight.check_end(preflight.outline(model.name), 4)
    assert found == "texts end with 1 '</s>', 4 'c'; references with 4 'c'"


def test_heads_of_other_widths_are_noted(made: Any) -> None:
    student, same = made(LlamaConfig(**SIZES)), made(LlamaConfig(**SIZES))
    assert preflight.check_served(student, same) == f"{student.width:,} rows, as the target"
    wider = made(LlamaConfig(**SIZES | {"vocab_size": SIZES["vocab_size"] + 8}))
    assert "specalign-train export" in caution(preflight.check_served(student, wider))


def test_padding_and_templates_that_differ_are_noted(made: Any) -> None:
    teacher = made(LlamaConfig(**SIZES), template="{{ messages }}")
    student = made(LlamaConfig(**SIZES))
    assert preflight.check_padding(student, teacher) == "id 0"
    assert "another chat template" in caution(preflight.check_same_template(student, teacher))
    student.tokenizer.pad_token = "d"
    assert isinstance(preflight.check_padding(student, teacher), Caution)


def raising(message: str) -> Any:
    def check() -> str:
        raise UserError(message)

    return check


def test_a_check_that_fails_for_an_earlier_reason_is_skipped() -> None:
    found = examine([("one", raising("x")), ("two", raising("x")), ("three", lambda: Caution("c"))])
    assert [finding.verdict for finding in found] == ["failed", "skipped", "note"]
    assert found[1].detail == "needs 'one' to pass"


def test_what_failed_becomes_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Finding("a", "ok", "fine"), Finding("b", "failed", "no [b] here; mend it")
    require_passed([good])
    with pytest.raises(UserError, match=r"^no \[b\] here; mend it$"):
        require_passed([good, bad])
    with pytest.raises(UserError, match=r"2 checks failed: b: .* · b: "):
        require_passed([bad, bad])
    with pytest.raises(UserError, match="1 of 2 checks failed: b"):
        report("title", [good, bad])
    assert "no [b] here" in capsys.readouterr().out
