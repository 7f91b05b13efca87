"""What our forward pass does not compute as the model's own class does is refused by the class's name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from specalign.decoding import ModelDrafter, generate
from specalign.decoding.probe import require_decodable
from specalign.errors import UserError
from specalign.models.load import load_model
from specalign.models.probe import require_own_logits
from specalign.models.tiny import FAMILIES, make_model

Wrong = Callable[[Any], object]


def bart() -> Any:
    sizes: dict[str, Any] = {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
    }
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(
        vocab_size=40,
        d_model=16,
        init_std=0.5,
        max_position_embeddings=48,
        decoder_start_token_id=2,
        **sizes,
        **heads,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BartForConditionalGeneration(config).eval()


def biased(model: Any) -> None:
    """A bias on the logits behind the head, as BART and its kin have one."""
    bias = torch.linspace(-3, 3, 40)
    forward = model.forward

    def shifted(*args: Any, **inputs: Any) -> Any:
        found = forward(*args, **inputs)
        found.logits = found.logits + bias.to(found.logits)
        return found

    model.forward = shifted


def scaled(model: Any) -> None:
    """A factor that no field of the config tells."""
    forward = model.forward

    def scaled_forward(*args: Any, **inputs: Any) -> Any:
        found = forward(*args, **inputs)
        found.logits = found.logits * 1.5
        return found

    model.forward = scaled_forward


def headless(model: Any) -> None:
    model.get_output_embeddings = lambda: None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_family_of_ours_passes_in_every_precision(family: str, dtype: torch.dtype) -> None:
    scale = 4.0 if dtype in (torch.float64, torch.float32) else 1.5
    model: Any = make_model(family, scale=scale)
    model.to(dtype)
    require_own_logits("it", model)
    require_decodable(model)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("wrong", [biased, scaled, headless])
def test_a_head_that_is_not_the_models_own_is_refused(family: str, wrong: Wrong) -> None:
    model = make_model(family)
    wrong(model)
    named = f"{type(model).__name__} is not supported"
    with pytest.raises(UserError, match=named):
        require_own_logits("it", model)
    with pytest.raises(UserError, match=named):
        generate(model, None, [5, 9, 31])


def test_a_wrong_drafter_is_refused_too() -> None:
    drafter = make_model("llama", 1)
    biased(drafter)
    with pytest.raises(UserError, match="LlamaForCausalLM is not supported"):
        generate(make_model("llama"), ModelDrafter(drafter), [5, 9, 31])


def test_barts_bias_is_refused_where_there_is_one(tmp_path: Path) -> None:
    model = bart()
    require_own_logits("it", model)
    (plain,) = generate(model, None, [5, 9, 31], max_new_tokens=8, eos=()).token_ids
    start, expected = [[2]], []
    for _ in range(8):
        ids = torch.tensor(start)
        expected.append(
            int(model(input_ids=torch.tensor([[5, 9, 31]]), decoder_input_ids=ids).logits[0, -1].argmax())
        )
        start[0].append(expected[-1])
    assert plain == expected
    written = [expected[:3], [], expected[:1]]
    rows = generate(model, None, [[5, 9, 31]] * 3, written=written, max_new_tokens=5, eos=()).token_ids
    assert rows == [expected[len(part) : len(part) + 5] for part in written], "positions are absolute"
    model.final_logits_bias.copy_(torch.linspace(-3, 3, 40).unsqueeze(0))
    with pytest.raises(UserError, match="BartForConditionalGeneration is not supported"):
        generate(copy.deepcopy(model), None, [5, 9, 31])
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BartForConditionalGeneration is not supported"):
        load_model(str(tmp_path))


def test_a_model_is_tried_once() -> None:
    model = make_model("llama")
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        generate(model, None, [5, 9, 31], max_new_tokens=2)
    assert len(calls) == 2  # the engine itself calls the decoder, never the model
