"""Packed and compiled steps decode what eager ones do."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from specalign.decoding import ModelDrafter, PromptLookup, Shapes, Stepper, generate, kernels, make_stepper
from specalign.decoding.session import Session
from specalign.models.packing import PackedLinear, can_pack

Build = Callable[..., PreTrainedModel]
Naive = Callable[..., list[int]]
PROMPTS = [[5, 9, 31, 7, 7, 12, 9], [3, 8, 20], [17]]
SHAPES = Shapes(sizes=(1, 4), capacity=48, n_rows=3)
KEPT = torch.arange(0, 40, 3)


@pytest.fixture(scope="module")
def compiled(build: Build) -> Callable[[str], tuple[Stepper, ModelDrafter]]:
    """Target and drafter (trimmed head) of a family, compiled once."""
    made: dict[str, tuple[Stepper, ModelDrafter]] = {}

    def get(family: str) -> tuple[Stepper, ModelDrafter]:
        if family not in made:
            near = build(family, noise=0.05)
            shapes = Shapes(sizes=(1, 2), capacity=48, n_rows=3)
            drafter = ModelDrafter(near, KEPT, make_stepper(near, "compiled", ids=KEPT, shapes=shapes))
            made[family] = make_stepper(build(family), "compiled", shapes=SHAPES), drafter
        return made[family]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2", "gemma3"])
def test_compiled_greedy_output_is_that_of_a_loop_without_cache(
    build: Build, naive_greedy: Naive, compiled: Callable[[str], tuple[Stepper, ModelDrafter]], family: str
) -> None:
    target, drafter = compiled(family)
    expected = [naive_greedy(build(family), prompt, 12) for prompt in PROMPTS]
    for kind in (None, drafter, PromptLookup()):
        for gamma in (2, 3):
            alone = [
                generate(target, kind, prompt, gamma=gamma, max_new_tokens=12).token_ids[0]
                for prompt in PROMPTS
            ]
            assert alone == expected
            assert generate(target, kind, PROMPTS, gamma=gamma, max_new_tokens=12).token_ids == expected


def test_a_compiled_llama_decodes_and_refuses_what_it_was_not_compiled_for(
    build: Build, naive_greedy: Naive
) -> None:
    done: list[int] = []
    model = build("llama")
    target = make_stepper(model, "compiled", shapes=Shapes(sizes=(1, 3), capacity=32), progress=done.append)
    assert done == [1, 1]
    prompt = PROMPTS[0]
    drafter = ModelDrafter(build("llama", noise=0.05))
    for _ in range(2):  # nothing is left from one request to the next
        assert generate(target, drafter, prompt, gamma=2, max_new_tokens=10).token_ids == [
            naive_greedy(model, prompt, 10)
        ]
    n_graphs = counters["stats"]["unique_graphs"]
    with torch.inference_mode():
        session = Session.start(target, [prompt], 8)
        before = list(session.lengths)
        whole = session.extend(torch.tensor([[5, 9, 31, 7, 12]]))  # more than any size, in several calls
        session.rollback(before)
        one_by_one = [session.extend(torch.tensor([[token]])) for token in (5, 9, 31, 7, 12)]
    assert torch.allclose(whole, torch.cat(one_by_one, 1))
    assert counters["stats"]["unique_graphs"] == n_graphs  # nothing is compiled again while decoding
    with pytest.raises(ValueError, match="compiled for batches of 1, not 3"):
        generate(target, None, PROMPTS, max_new_tokens=4)
    with pytest.raises(ValueError, match="compiled for 32 positions, 44 are needed"):
        generate(target, None, prompt, max_new_tokens=33)


def test_models_of_one_shape_keep_their_own_graphs(build: Build) -> None:
    """A compiled call looks at tensors alone, which are alike here."""
    ids = torch.tensor([PROMPTS[0][:3]])
    for model in (build("llama"), build("llama", noise=0.05)):
        stepped = make_stepper(model, "compiled", shapes=Shapes(sizes=(3,), capacity=32))
        assert stepped.compiled
        with torch.inference_mode():
            for each in (stepped.compiled(ids, [0])[0], stepped.compiled(ids, [0])[0]):
                assert torch.allclose(each, model(ids).logits)


@pytest.mark.parametrize(("isolates", "filtered"), [(True, True), (False, False)])
def test_guards_are_dropped_only_where_each_function_has_its_own_graphs(
    monkeypatch: pytest.MonkeyPatch, isolates: bool, filtered: bool
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(kernels, "ISOLATES", isolates)
    monkeypatch.setattr(torch, "compile", lambda step, **options: given.update(options))
    kernels.compile_step(torch.nn.Identity(), torch.device("cpu"))
    assert ("options" in given) is filtered
    kernels.compile_step(torch.nn.Identity(), torch.device("cuda"))
    assert given["mode"] == "reduce-overhead"


def test_few_rows_are_multiplied_by_the_template_that_reads_weights_fast(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More may be by whichever kernel the compiler finds the fastest; so may float64, which the template cannot do."""
    asked: list[str] = []
    real = kernels._packed_for_cpu

    def recorded(which: str) -> AbstractContextManager[None]:
        asked.append(which)
        return real(which)

    monkeypatch.setattr(kernels, "_packed_for_cpu", recorded)
    model = copy.deepcopy(build("llama"))
    make_stepper(model, "compiled", shapes=Shapes(sizes=(1,), capacity=32))
    assert asked == ["CPP", "CPP,ATEN"]
    make_stepper(model.float(), "compiled", shapes=Shapes(sizes=(1, 9), capacity=32, n_rows=2))
    assert asked[2:] == ["CPP", "CPP,ATEN"]


@pytest.mark.parametrize(
    ("asked", "gcc", "machine", "written"),
    [
        (None, True, "x86_64", "native -fno-tree-loop-distribute-patterns"),
        ("skylake", True, "x86_64", None),
        (None, False, "x86_64", None),
        (None, True, "aarch64", None),
    ],
)
def test_the_compiler_keeps_a_kernels_sums_in_registers_unless_the_user_names_a_processor(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, gcc: bool, machine: str, written: str | None
) -> None:
    from torch._inductor import config, cpp_builder

    if not hasattr(config.cpp, "march"):
        pytest.skip("this torch takes no processor's name")
    monkeypatch.setattr(cpp_builder, "is_gcc", lambda: gcc)
    monkeypatch.setattr(kernels.platform, "machine", lambda: machine)
    few: list[str] = []
    with config.patch({"cpp.march": asked}):
        with kernels._packed_for_cpu("CPP"):
            given = config.cpp.march
        monkeypatch.setattr(kernels, "_packed_for_cpu", lambda which: nullcontext(few.append(which)))  # type: ignore[func-returns-value]
        kernels.trace(lambda: None, torch.device("cpu"), 5)
    assert (given or "").startswith(written) if written else given == asked
    assert few == (["CPP"] if written else ["CPP,ATEN"])


def test_a_gpus_graphs_ask_for_no_compiler_of_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder

    calls: list[None] = []
    monkeypatch.setattr(cpp_builder, "is_gcc", lambda: pytest.fail("there may be none"))
    kernels.trace(lambda: calls.append(None), torch.device("cuda"), 1)
    assert len(calls) == 2


def test_products_that_the_template_cannot_do_are_left_to_the_other_kernels() -> None:
    asked: list[str] = []

    def feed() -> None:
        asked.append(torch._inductor.config.max_autotune_gemm_backends)
        if asked == ["CPP"]:
            raise torch._dynamo.exc.BackendCompilerFailed(feed, RuntimeError("No choices to select."), None)

    kernels.trace(feed, torch.device("cpu"), 1)
    assert asked == ["CPP", "CPP,ATEN", "CPP,ATEN"]


def test_sampling_with_a_compiled_target_is_sampling_with_an_eager_one(build: Build) -> None:
    model = build("llama")
    target = make_stepper(model, "compiled", shapes=Shapes(sizes=(1, 3), capacity=32))

    def sampled(which: PreTrainedModel | Stepper) -> list[list[int]]:
        generator = torch.Generator().manual_seed(3)
        return generate(
            which,
            ModelDrafter(build("llama", noise=0.05)),
            PROMPTS[0],
            gamma=2,
            temperature=1.0,
            max_new_tokens=12,
            generator=generator,
        ).token_ids

    assert sampled(target) == sampled(model)


def test_a_stepper_keeps_its_head(build: Build) -> None:
    with pytest.raises(ValueError, match="a Stepper has its head already"):
        generate(make_stepper(build("llama")), None, PROMPTS[0], head_ids=KEPT)


def test_shapes_and_encoder_decoders_are_refused_in_words(build: Build) -> None:
    with pytest.raises(ValueError, match="static shapes"):
        make_stepper(build("llama"), "compiled")
    with pytest.raises(ValueError, match="encoder-decoder models cannot be compiled"):
        make_stepper(build("t5"), "compiled", shapes=SHAPES)


@pytest.mark.skipif(not can_pack(torch.zeros(1, 1)), reason="this CPU has no packed kernel")
def test_packed_logits_are_the_eager_ones(build: Build, family: str) -> None:
    model = copy.deepcopy(build(family)).float()
    drafter = copy.deepcopy(model)
    packed = make_stepper(drafter, "packed")
    assert any(isinstance(module, PackedLinear) for module in drafter.modules())
    assert packed.head.packed is not None
    for rows in (1, 2, 5, 9):
        hidden = torch.randn(rows, 32)
        expected = Stepper(model, make_stepper(model).head).head(hidden)
        assert torch.allclose(packed.head(hidden), expected, rtol=1e-5, atol=1e-5)
    greedy = generate(model, None, PROMPTS[0], max_new_tokens=12).token_ids
    assert generate(packed, ModelDrafter(drafter), PROMPTS[0], gamma=3, max_new_tokens=12).token_ids == greedy


@pytest.mark.skipif(not can_pack(torch.zeros(1, 1)), reason="this CPU has no packed kernel")
def test_packed_copies_stand_in_the_place_of_the_weights(build: Build, family: str) -> None:
    """Half the memory of both; the head's rows and the embedding stay, since drafters and lookups read them."""
    model = copy.deepcopy(build(family)).float()
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    n_parameters = model.num_parameters()
    linears = [module for module in model.modules() if type(module) is torch.nn.Linear]
    body = [weakref.ref(linear.weight) for linear in linears if linear.weight is not head]
    del linears
    make_stepper(model, "packed")
    gc.collect()
    assert len(body) > 4
    assert not any(ref() is not None for ref in body)
    assert model.get_output_embeddings().weight is head
    assert model.get_input_embeddings().weight is embedding
    assert model.num_parameters() == n_parameters
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)


@pytest.mark.skipif(not can_pack(torch.zeros(1, 1)), reason="this CPU has no packed kernel")
def test_a_trimmed_head_is_packed_from_its_own_rows(build: Build) -> None:
    model = copy.deepcopy(build("llama")).float()
    whole = make_stepper(model).head
    trimmed = make_stepper(model, "packed", ids=KEPT).head
    hidden = torch.randn(4, 32)
    assert trimmed.packed is not None
    assert torch.allclose(trimmed(hidden), whole(hidden)[:, KEPT], rtol=1e-5, atol=1e-5)


def test_float64_models_are_left_as_they_are(build: Build) -> None:
    model = copy.deepcopy(build("llama"))
    assert make_stepper(model, "packed").head.packed is None
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
