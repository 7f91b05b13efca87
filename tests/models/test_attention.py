"""FlashAttention 2 where it can run, sdpa where it cannot: against a stand-in for its kernels, without a GPU."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import modeling_flash_attention_utils as flash_utils

from specalign.decoding import ModelDrafter, PromptLookup, generate
from specalign.models.attention import attention_for
from specalign.models.tiny import make_model
from specalign.training.rows import Branch, Row, lay_out
from specalign.training.scoring import Pair, overlaps, states

ROWS = [Row((1, 2, 3, 4, 5, 6, 7), 3), Row((1, 2, 3, 4, 5), 3)]
BRANCHED = [Row((1, 2, 3, 4, 5, 6, 7), 3, (Branch(3, (8, 9)), Branch(5, (4, 4, 2))), on_policy=True)]
PROMPTS = [[5, 9, 31, 7], [3, 8], [17]]
calls: list[str] = []


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None) -> Tensor:
    """[n, heads, d] of one sequence; the last query is at the last key's position."""
    heads = query.shape[1] // key.shape[1]
    mask = None
    if causal:
        mask = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
    q, k, v = (
        part.transpose(0, 1)
        for part in (query, key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1))
    )
    return functional.scaled_dot_product_attention(q, k, v, mask, scale=scale).transpose(0, 1)


def require_half(*tensors: Tensor) -> None:
    """As the kernels do."""
    if any(tensor.dtype not in (torch.float16, torch.bfloat16) for tensor in tensors):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: Any = None, causal: bool = False, **rest: Any
) -> Tensor:
    calls.append("dense")
    require_half(q, k, v)
    return torch.stack([attend(*row, causal, softmax_scale) for row in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    softmax_scale: Any = None,
    causal: bool = False,
    **rest: Any,
) -> Tensor:
    calls.append("varlen")
    require_half(q, k, v)
    if cu_seqlens_q.shape != cu_seqlens_k.shape or cu_seqlens_q.dim() != 1:
        raise RuntimeError("cu_seqlens_k must have shape (batch_size + 1)")
    bounds: list[Sequence[int]] = [cu_seqlens_q.tolist(), cu_seqlens_k.tolist()]
    parts = [
        attend(q[a:b], k[c:d], v[c:d], causal, softmax_scale)
        for a, b, c, d in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:], strict=False)
    ]
    return torch.cat(parts)


@pytest.fixture(autouse=True)
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package flash_attn, with the shape and dtype checks of its kernels, on the CPU."""
    module = ModuleType("flash_attn")
    module.__spec__ = ModuleSpec("flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    functions = (
        flash_attn_func,
        flash_attn_varlen_func,
        None,
        flash_utils._pad_input,
        flash_utils._unpad_input,
    )
    monkeypatch.setattr(flash_utils, "_lazy_imports", lambda *args, **kwargs: functions)
    monkeypatch.setattr(flash_utils, "_flash_fn", None, raising=False)
    for name in ("_loaded_implementation", "_flash_varlen_fn"):
        monkeypatch.setattr(flash_utils, name, None, raising=False)
    calls.clear()
    yield
    calls.clear()


@pytest.fixture(scope="module")
def models() -> Callable[[torch.dtype], tuple[PreTrainedModel, PreTrainedModel]]:
    """The same weights with sdpa and with flash_attention_2."""

    def get(dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel]:
        model = make_model("llama")
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        other = copy.deepcopy(model)
        other.config._attn_implementation = "flash_attention_2"
        return model, other

    return get


Models = Callable[[torch.dtype], tuple[PreTrainedModel, PreTrainedModel]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[2:], PROMPTS], ids=["one", "one token", "ragged"])
def test_decoding_is_that_of_sdpa(models: Models, dtype: torch.dtype, prompts: list[list[int]]) -> None:
    plain, flash = models(dtype)
    for with_drafter in (False, True):
        drafters = [ModelDrafter(model) if with_drafter else None for model in (plain, flash)]
        ours, theirs = (
            generate(model, drafter, prompts, gamma=2, max_new_tokens=8, eos=()).token_ids
            for model, drafter in zip((flash, plain), drafters, strict=True)
        )
        assert ours == theirs
    assert generate(flash, PromptLookup(), prompts, max_new_tokens=8, eos=()).token_ids == ours
    assert not calls
    assert flash.config._attn_implementation == "flash_attention_2"


def test_whole_texts_in_half_precision_are_scored_by_its_kernels(models: Models) -> None:
    plain, flash = models(torch.bfloat16)
    layout = lay_out(ROWS, packed=False)
    torch.testing.assert_close(states(flash, layout), states(plain, layout), rtol=0.05, atol=0.05)
    assert "dense" in calls


def test_float32_students_train_under_autocast_and_validate_outside(models: Models) -> None:
    """The loss and its gradients go through the kernels; validation, a log line and packed branches do not."""
    plain, flash = models(torch.float32)
    _, teacher = models(torch.bfloat16)
    pair, layout = Pair(flash, teacher, 40), lay_out(ROWS, packed=False)
    alpha = overlaps(pair, layout).alpha
    calls.clear()
    outside = states(flash, layout)
    assert not calls
    torch.testing.assert_close(outside, states(plain, layout))
    packed = lay_out(BRANCHED, packed=True)
    torch.testing.assert_close(states(flash, packed), states(plain, packed))
    assert not calls
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = states(flash, layout)
    assert calls
    torch.testing.assert_close(inside.float(), outside, rtol=0.1, atol=0.1)
    assert ((alpha > 0) & (alpha <= 1)).all()


def test_the_choice_lasts_as_long_as_its_context(models: Models) -> None:
    _, flash = models(torch.bfloat16)
    with pytest.raises(RuntimeError), attention_for(flash, masked=True):  # whatever happens inside
        torch.zeros(1) @ torch.zeros(2)
    assert flash.config._attn_implementation == "flash_attention_2"
    with attention_for(flash, masked=False):
        assert flash.config._attn_implementation == "flash_attention_2"
