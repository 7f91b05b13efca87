"""Slices are real checkpoints of the teacher's class; alignment is the least-squares fit that it claims to be."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from specalign.data import load_examples
from specalign.errors import UserError
from specalign.losses import overlap
from specalign.models import alignment
from specalign.models.alignment import align_slice, float64_device, n_passes
from specalign.models.importance import layer_influence, most_influential
from specalign.models.load import load_model, load_tokenizer
from specalign.models.properties import decoder_layers
from specalign.models.slicing import choose_layers, slice_layers
from specalign.models.tiny import FAMILIES, make_model

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}


def llama(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(SIZES | changes))).double().eval()


def batches(n: int = 3, rows: int = 4, length: int = 20) -> list[tuple[Tensor, Tensor]]:
    """Random token ids, the last rows padded."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(n):
        ids = torch.randint(1, 40, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, length // 2 :] = 0
        made.append((ids, mask))
    return made


@pytest.mark.parametrize(
    ("n_layers", "n_keep", "how", "chosen"),
    [
        (30, 4, "ends", (0, 1, 28, 29)),
        (30, 3, "ends", (0, 1, 29)),
        (30, 4, "even", (0, 10, 19, 29)),
        (4, 4, "ends", (0, 1, 2, 3)),
        (4, 2, "even", (0, 3)),
    ],
)
def test_choose_layers(n_layers: int, n_keep: int, how: Any, chosen: tuple[int, ...]) -> None:
    assert choose_layers(n_layers, n_keep, how) == chosen


@pytest.mark.parametrize("n_keep", [0, 1, 31])
def test_impossible_numbers_of_layers_are_refused(n_keep: int) -> None:
    with pytest.raises(UserError, match="choose 2 to 30"):
        choose_layers(30, n_keep)


@pytest.mark.parametrize("layers", [(0, 1), (1, 4), (0, 2, 2, 4), (4, 0), ()])
def test_layers_must_rise_from_the_first_to_the_last(layers: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="from 0 to 4"):
        slice_layers(llama(), layers)


def test_a_slice_of_everything_is_the_teacher() -> None:
    teacher = llama(tie_word_embeddings=True)
    whole = slice_layers(teacher, range(5))
    ids = torch.tensor([[3, 8, 20, 7]])
    assert torch.equal(whole(ids).logits, teacher(ids).logits)


def test_a_slice_copies_the_chosen_layers_and_stays_tied(tmp_path: Path) -> None:
    teacher = llama(tie_word_embeddings=True)
    student = slice_layers(teacher, (0, 3, 4))
    for place, layer in enumerate((0, 3, 4)):
        ours, theirs = student.model.layers[place].state_dict(), teacher.model.layers[layer].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert student.lm_head.weight is student.model.embed_tokens.weight
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ids = torch.tensor([[3, 8, 20, 7]])
    assert torch.equal(loaded(ids).logits, student(ids).logits)
    assert student(ids, use_cache=True).past_key_values.get_seq_length() == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_trained_slice_is_the_saved_one(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Whatever the teacher's dtype: what no file holds (RoPE frequencies, Gemma's scale) is not rounded to it."""
    teacher = make_model(family).to(dtype)  # type: ignore[arg-type]
    student = slice_layers(teacher, [0, 1] if family == "t5" else [0, 2]).float()
    student.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    buffers = dict(again.named_buffers())
    assert dict(student.named_buffers()).keys() == buffers.keys()
    for name, buffer in student.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    weights = dict(again.named_parameters())
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_layer_types_follow_their_layers() -> None:
    types = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**SIZES, layer_types=types, sliding_window=4)
    student = slice_layers(Gemma3ForCausalLM(config).eval(), (0, 1, 4))
    assert student.config.layer_types == ["sliding_attention", "full_attention", "full_attention"]
    assert student(torch.tensor([[3, 8, 20, 7]])).logits.isfinite().all()


def test_an_encoder_decoder_slice_cuts_the_decoder() -> None:
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=4, num_heads=2)
    teacher = T5ForConditionalGeneration(config).eval()
    student = slice_layers(teacher, (0, 3))
    assert (student.config.num_layers, student.config.num_decoder_layers) == (4, 2)
    assert len(decoder_layers(student)) == 2
    start = torch.tensor([[0, 5]])
    assert student(input_ids=torch.tensor([[3, 8]]), decoder_input_ids=start).logits.shape == (1, 2, 40)


def test_alignment_recovers_a_planted_map() -> None:
    """Skipped layers that do nothing and one damaged map: the fit must bring the teacher's map back."""
    teacher = llama()
    with torch.no_grad():
        for layer in teacher.model.layers[2:4]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    student = slice_layers(teacher, (0, 1, 4))
    planted = teacher.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        student.model.layers[1].mlp.down_proj.weight.mul_(-3)
    refits = align_slice(student, teacher, (0, 1, 4), batches(), ridge=0.0)
    torch.testing.assert_close(student.model.layers[1].mlp.down_proj.weight, planted, rtol=1e-6, atol=1e-8)
    assert [refit.layer for refit in refits] == [1, 4]
    assert refits[0].error_before > 0.1
    assert refits[0].error_after < 1e-10


def test_alignment_never_raises_the_error_and_touches_two_matrices() -> None:
    teacher = llama()
    student = slice_layers(teacher, (0, 1, 4))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    refits = align_slice(student, teacher, (0, 1, 4), batches(), ridge=1e-6)
    assert all(refit.error_after < refit.error_before for refit in refits)
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{place}.mlp.down_proj.weight" for place in (1, 2)}


def test_alignment_is_the_weighted_ridge_solution() -> None:
    """Against a direct solution for the first refitted layer."""
    teacher, ridge = llama(), 1e-2
    student = slice_layers(teacher, (0, 4))
    inner, outer, target = [], [], []
    caught: dict[str, Tensor] = {}
    for ids, mask in batches():
        kept = mask.bool()
        layer = student.model.layers[0]
        hooks = [
            layer.mlp.down_proj.register_forward_hook(lambda _m, args, out: caught.update(a=args[0], d=out)),
            layer.register_forward_hook(lambda _m, _args, out: caught.update(y=out)),
            teacher.model.layers[3].register_forward_hook(lambda _m, _args, out: caught.update(t=out)),
        ]
        student(ids, attention_mask=mask)
        teacher(ids, attention_mask=mask)
        for hook in hooks:
            hook.remove()
        inner.append(caught["a"][kept])
        outer.append((caught["t"] - caught["y"] + caught["d"])[kept])
        target.append(caught["t"][kept].norm(dim=-1, keepdim=True))
    scale = 1 / torch.cat(target)
    a, b = torch.cat(inner) * scale, torch.cat(outer) * scale
    gram = a.T @ a
    expected = torch.linalg.solve(gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)), a.T @ b).T
    align_slice(student, teacher, (0, 4), batches(), ridge=ridge)
    torch.testing.assert_close(student.model.layers[0].mlp.down_proj.weight, expected)


def test_batching_does_not_change_the_fit() -> None:
    teacher = llama()
    one, many = slice_layers(teacher, (0, 4)), slice_layers(teacher, (0, 4))
    data = batches()
    align_slice(one, teacher, (0, 4), data)
    align_slice(
        many, teacher, (0, 4), [(ids[i : i + 1], mask[i : i + 1]) for ids, mask in data for i in range(4)]
    )
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, many.state_dict()[name], rtol=1e-8, atol=1e-10)


def test_an_unsliced_teacher_stays_unchanged() -> None:
    teacher = llama()
    student = slice_layers(teacher, range(5))
    assert align_slice(student, teacher, range(5), batches()) == []
    assert n_passes(range(5)) == 1
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True)
    )


def gemma(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    kinds: dict[str, Any] = {
        "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"attn_implementation": "eager"}),
        "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {}),
    }
    config, model, options = kinds[family]
    return model(config(**SIZES, **options)).double().eval()


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_normalised_output_is_fitted_by_direction_and_gain(family: str) -> None:
    """The reported error is the measured one of the new weights, lower than before, in two modules a place."""
    teacher = gemma(family)
    student = slice_layers(teacher, (0, 4))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    refits = align_slice(student, teacher, (0, 4), batches())
    assert all(refit.error_after < refit.error_before for refit in refits)
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    ends = ("mlp.down_proj.weight", "post_feedforward_layernorm.weight")
    assert changed == {f"model.layers.{place}.{end}" for place in (0, 1) for end in ends}
    # The last layer's input is fixed by now: a second call starts from the error that the first one reached.
    again = align_slice(copy.deepcopy(student), teacher, (0, 4), batches(), ridge=1e12)
    assert again[0].error_before == pytest.approx(refits[0].error_after, rel=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_fit_that_does_not_help_is_not_kept(family: str) -> None:
    """A layer that is right already: the two-step fit of a normalised output cannot beat it and must not stay."""
    teacher: Any = gemma(family)
    with torch.no_grad():
        for layer in teacher.model.layers[1:4]:
            layer.post_attention_layernorm.weight.fill_(-1)
            layer.post_feedforward_layernorm.weight.fill_(-1)
    student = slice_layers(teacher, (0, 4))
    refits = align_slice(student, teacher, (0, 4), batches())
    assert [refit.error_after for refit in refits] == [refit.error_before for refit in refits]
    ours, theirs = student.state_dict(), slice_layers(teacher, (0, 4)).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_encoder_decoder_slice_is_aligned_too() -> None:
    """Planted: T5's decoder layers that are cut out do nothing, and one map of the student is damaged."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=4, num_heads=2
    )
    teacher: Any = T5ForConditionalGeneration(config).double().eval()
    with torch.no_grad():
        for block in teacher.decoder.block[1:3]:
            block.layer[0].SelfAttention.o.weight.zero_()
            block.layer[1].EncDecAttention.o.weight.zero_()
            block.layer[2].DenseReluDense.wo.weight.zero_()
    student: Any = slice_layers(teacher, (0, 3))
    with torch.no_grad():
        student.decoder.block[0].layer[2].DenseReluDense.wo.weight.mul_(-3)
    data = [(*encoder, *decoder) for encoder, decoder in zip(batches(), batches(length=12), strict=True)]
    refits = align_slice(student, teacher, (0, 3), data, ridge=0.0)
    assert refits[0].error_before > 0.1
    assert refits[0].error_after < 1e-10
    ids, mask, decoder_ids, _ = data[0]
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}
    torch.testing.assert_close(student(**inputs).logits, teacher(**inputs).logits, rtol=1e-5, atol=1e-6)


def t5(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes | {"num_layers": 4} | changes)).double().eval()


def test_an_encoder_is_cut_and_aligned_too() -> None:
    """Planted: encoder layers that are cut out do nothing, one map is damaged; the whole model comes back."""
    teacher = t5(num_decoder_layers=3)
    with torch.no_grad():
        for block in teacher.encoder.block[1:3]:
            block.layer[0].SelfAttention.o.weight.zero_()
            block.layer[1].DenseReluDense.wo.weight.zero_()
    student: Any = slice_layers(teacher, range(3), (0, 3))
    assert (student.config.num_layers, student.config.num_decoder_layers) == (2, 3)
    with torch.no_grad():
        student.encoder.block[0].layer[1].DenseReluDense.wo.weight.mul_(-3)
    data = [(*encoder, *decoder) for encoder, decoder in zip(batches(), batches(length=12), strict=True)]
    refits = align_slice(student, teacher, (0, 3), data, tower="encoder", ridge=0.0)
    assert [refit.layer for refit in refits] == [0, 3]
    assert refits[0].error_before > 0.1
    assert refits[0].error_after < 1e-10
    ids, mask, decoder_ids, _ = data[0]
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}
    torch.testing.assert_close(student(**inputs).logits, teacher(**inputs).logits, rtol=1e-5, atol=1e-6)


def test_a_slice_of_both_towers_is_a_checkpoint(tmp_path: Path) -> None:
    teacher = t5()
    student: Any = slice_layers(teacher, (0, 1, 3), (0, 3))
    for place, layer in enumerate((0, 3)):
        ours, theirs = (
            model.encoder.block[at].state_dict() for model, at in ((student, place), (teacher, layer))
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    student.save_pretrained(tmp_path)
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float64)
    inputs = {"input_ids": torch.tensor([[3, 8, 20]]), "decoder_input_ids": torch.tensor([[0, 5]])}
    assert torch.equal(loaded(**inputs).logits, student(**inputs).logits)
    with pytest.raises(UserError, match="layers must rise from 0 to 3"):
        slice_layers(teacher, (0, 3), (0, 1))


def test_the_teachers_states_are_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each batch they are gone when the next one is asked for; their files are gone at the end."""
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path))
    alive: list[weakref.ref[Tensor]] = []
    states = alignment._teacher_states

    def watched(*arguments: Any) -> dict[str, Tensor]:
        gc.collect()
        assert not any(reference() is not None for reference in alive)
        found = states(*arguments)
        alive.extend(weakref.ref(tensor) for tensor in found.values())
        return found

    monkeypatch.setattr(alignment, "_teacher_states", watched)
    teacher = llama()
    align_slice(slice_layers(teacher, (0, 2, 4)), teacher, (0, 2, 4), (batch for batch in batches(n=5)))
    assert len(alive) == 5 * 3
    assert list(tmp_path.iterdir()) == []


def test_mps_has_no_float64() -> None:
    assert float64_device(torch.device("mps")) == torch.device("cpu")
    assert float64_device(torch.device("cuda:1")) == torch.device("cuda:1")


def test_influence_is_one_minus_the_cosine() -> None:
    """A layer that does nothing has none; the others match the mean over the unpadded tokens."""
    teacher = llama()
    with torch.no_grad():
        teacher.model.layers[2].self_attn.o_proj.weight.zero_()
        teacher.model.layers[2].mlp.down_proj.weight.zero_()
    influence = layer_influence(teacher, batches())
    assert influence[2] == pytest.approx(0, abs=1e-6)
    assert all(0.01 < value < 2 for place, value in enumerate(influence) if place != 2)
    ids, mask = batches()[0]
    states = teacher(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    expected = 1 - functional.cosine_similarity(states[1], states[2], dim=-1)[mask.bool()].mean()
    assert layer_influence(teacher, batches()[:1])[1] == pytest.approx(expected.item(), rel=1e-5)


def test_the_most_influential_layers_are_kept_in_their_order() -> None:
    assert most_influential([0.0, 0.2, 0.9, 0.1, 0.4, 0.0], 4) == (0, 2, 4, 5)
    assert most_influential([0.0, 0.2, 0.9], 2) == (0, 2)


def test_influence_of_an_encoder() -> None:
    data = [(*encoder, *decoder) for encoder, decoder in zip(batches(), batches(length=12), strict=True)]
    teacher = t5(num_decoder_layers=2)
    assert len(layer_influence(teacher, data, "encoder")) == 4
    assert len(layer_influence(teacher, data)) == 2


@pytest.mark.parametrize(
    "teacher",
    [
        pytest.param(lambda: GraniteForCausalLM(GraniteConfig(**SIZES, residual_multiplier=0.3)), id="scaled"),
        pytest.param(lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2)), id="experts"),
    ],
)
def test_layers_that_end_in_another_way_are_refused(teacher: Callable[[], PreTrainedModel]) -> None:
    model = teacher().eval()
    student = slice_layers(model, (0, 4))
    with pytest.raises(UserError, match='use start = "slice"'):
        align_slice(student, model, (0, 4), batches())


def test_a_bias_is_left_as_it_is() -> None:
    """The fit accounts for it: with the teacher's own map planted, the student is the teacher again."""
    teacher: Any = llama(mlp_bias=True)
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.mlp.down_proj.bias.normal_(generator=torch.Generator().manual_seed(2))
        for layer in teacher.model.layers[1:4]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            layer.mlp.down_proj.bias.zero_()
    student = slice_layers(teacher, (0, 4))
    with torch.no_grad():
        student.model.layers[0].mlp.down_proj.weight.mul_(-3)
    align_slice(student, teacher, (0, 4), batches(), ridge=0.0)
    for place, layer in enumerate((0, 4)):
        ours, theirs = student.model.layers[place].mlp.down_proj, teacher.model.layers[layer].mlp.down_proj
        assert torch.equal(ours.bias, theirs.bias)
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_a_real_slice_becomes_a_drafter() -> None:
    """SmolLM2 on documentation that it did not write: from no overlap with the teacher to a useful one."""
    teacher, words = load_model("builtin:smollm2"), load_tokenizer("builtin:smollm2")
    texts = [example.document for example in load_examples("builtin:docstrings", "train", limit=48)]
    encoded = [words(text, return_tensors="pt", truncation=True, max_length=128) for text in texts]
    data = [(text["input_ids"], text["attention_mask"]) for text in encoded]
    layers = choose_layers(30, 4)
    student = slice_layers(teacher, layers)

    @torch.no_grad()
    def alpha() -> float:
        shares = [overlap(student(ids).logits, teacher(ids).logits).flatten() for ids, _ in data[40:]]
        return float(torch.cat(shares).mean())

    assert alpha() < 0.02
    align_slice(student, teacher, layers, data[:40])
    assert alpha() > 0.15
