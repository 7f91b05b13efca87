"""Running out of memory names the numbers to change, and nothing else is taken for it."""

from collections.abc import Callable

import pytest
import torch

from specalign.errors import UserError
from specalign.training import loop, setup
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials
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
