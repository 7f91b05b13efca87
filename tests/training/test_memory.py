"""Less memory where it is asked for; running out of it names the numbers to change, and nothing else counts as that."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specalign.errors import UserError
from specalign.training import loop, setup
from specalign.training.config import TrainConfig
from specalign.training.materials import Materials, load_materials
from specalign.training.memory import advice, memory_advice

Tiny = Callable[..., TrainConfig]


def test_a_real_allocation_failure_is_answered_with_numbers(tiny: Tiny) -> None:
    config = tiny(optimiser={"batch": 8, "accumulation": 2})
    with (
        pytest.raises(UserError, match=r"optimiser.batch = 4 with optimiser.accumulation = 4, .*checkpoint"),
        memory_advice(config, "update"),
    ):
        torch.empty(2**60)


def test_a_step_without_memory_names_its_phase(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("gkd", rollout={"batch": 32})
    run = setup.start_run(config, load_materials(config))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate", full)
        with pytest.raises(UserError, match=r"while scoring and updating; try optimiser.batch = 1 "):
            loop.step(run)
    monkeypatch.setattr(loop, "writer", full)
    with pytest.raises(UserError, match=r"while generating rollouts; try rollout.batch = 16 "):
        loop.step(run)


def test_other_errors_are_not_taken_for_it(tiny: Tiny) -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_advice(tiny(), "update"):
        torch.zeros(3).reshape(2)


@pytest.mark.parametrize(
    ("optimiser", "expected"),
    [
        ({"batch": 3, "accumulation": 1}, "optimiser.batch = 1 with optimiser.accumulation = 3"),
        ({"batch": 1}, "optimiser.gradient_checkpointing = true"),
        ({"batch": 1, "gradient_checkpointing": True}, "a smaller data.max_prompt_tokens"),
    ],
)
def test_the_most_useful_setting_comes_first(
    tiny: Tiny, optimiser: dict[str, int | bool], expected: str
) -> None:
    assert advice(tiny(optimiser=optimiser), "update")[0] == expected


def bytes_kept_for_backward(config: TrainConfig, materials: Materials) -> int:
    """Of a run's step, after what puts a student into other modes: a validation and a rollout."""
    run = setup.start_run(config, materials)
    run.validation.score(run.pair)
    if not run.pair.reads:  # a head writes none
        loop.writer(run).write([run.prompts[0].input_ids], 2, None)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loop.step(run)
    assert not any(module.training for module in run.pair.student.modules())  # no dropout, then or now
    return sum(kept.values())


@pytest.mark.parametrize("model", ["slice", "model of its own", "head"])
@pytest.mark.parametrize("method", ["sft", "gkd"])
def test_gradient_checkpointing_keeps_less_for_the_backward_pass(
    tiny: Callable[..., TrainConfig], tmp_path: Path, model: str, method: str
) -> None:
    student = {"kind": "head", "start": "random", "unroll": 4} if model == "head" else {"n_layers": 4}
    changes: dict[str, Any] = {"student": student, "optimiser": {"batch": 4, "accumulation": 1}}
    config = tiny(method, **changes)
    materials = load_materials(config)
    if model == "model of its own":
        materials.student(config.student).save_pretrained(tmp_path / "student")
        config = tiny(method, **changes | {"student": {"model": str(tmp_path / "student")}})
    found = [
        bytes_kept_for_backward(
            replace(config, optimiser=replace(config.optimiser, gradient_checkpointing=on)), materials
        )
        for on in (False, True)
    ]
    assert found[1] < 0.75 * found[0]


def test_a_model_without_gradient_checkpointing_is_named(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("sft", optimiser={"gradient_checkpointing": True})
    materials = load_materials(config)
    monkeypatch.setattr(type(materials.teacher), "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match="gradient_checkpointing: LlamaForCausalLM does not support it"):
        setup.start_run(config, materials)
