"""What `generate` can be asked for is stated once, and known to the type checker and to the running program alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_type_hints

import pytest
from transformers import PreTrainedModel

from specalign.decoding import ModelDrafter, Options, generate, stream
from specalign.decoding.options import Given


def test_every_option_can_be_given_and_is_of_its_type() -> None:
    assert get_type_hints(Given) == get_type_hints(Options)


def test_what_is_not_given_is_as_the_options_say(build: Callable[..., PreTrainedModel]) -> None:
    target = build("llama")
    assert Options().temperature == 0
    found = generate(target, ModelDrafter(target), [5, 9, 31], max_new_tokens=12, eos=())
    assert max(step.n_drafted for step in found.steps[0]) == Options().gamma


def test_an_option_that_there_is_not_is_refused(build: Callable[..., PreTrainedModel]) -> None:
    """By mypy too: it would say if one of these lines had no error to ignore."""
    with pytest.raises(TypeError, match="gama"):
        generate(build("llama"), None, [5], gama=4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="gama"):
        next(stream(build("llama"), None, [5], gama=4))  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        generate(build("llama"), None, [5], gamma="4")  # type: ignore[arg-type]
