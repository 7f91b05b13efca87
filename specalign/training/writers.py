"""What writes the teacher's responses: this process, or a server of another engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specalign.errors import UserError
from specalign.models.preflight import Outline
from specalign.models.properties import eos_ids
from specalign.training.config import TrainConfig
from specalign.training.rollouts import Tokens, Writer, Writes


@dataclass(frozen=True)
class Teacher:
    """Whose responses are wanted."""

    config: TrainConfig
    model: PreTrainedModel
    """Perhaps without its weights."""
    tokenizer: PreTrainedTokenizerBase
    wake: Callable[[], PreTrainedModel]
    """The same with them."""


@dataclass(frozen=True)
class Engine:
    """One way to have the responses written."""

    writer: Callable[[Teacher, Path, ExitStack], Writes]
    """Of the teacher's responses in a folder; the stack ends what the writer starts."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What tells its responses from this process's own."""
    check: Callable[[TrainConfig, Outline], str] | None = None
    """What will write, said before anything is loaded; UserError where it cannot."""


@dataclass(frozen=True)
class OwnWriter:
    """The teacher itself, whose weights are there once something is to be written."""

    teacher: Teacher
    device: torch.device
    """Of the teacher, and of the generator that it draws from."""

    def write(
        self, prefixes: Sequence[Sequence[int]], max_new_tokens: int, generator: torch.Generator | None
    ) -> list[Tokens]:
        """As :class:`Writer` does."""
        rollout = self.teacher.config.rollout
        writer = Writer(self.teacher.wake(), rollout.teacher_temperature, batch=rollout.batch)
        return writer.write(prefixes, max_new_tokens, generator)


def _own(teacher: Teacher, folder: Path, stack: ExitStack) -> Writes:
    return OwnWriter(teacher, teacher.model.get_output_embeddings().weight.device)


def _served(teacher: Teacher, folder: Path, stack: ExitStack) -> Writes:
    from specalign.training.served import ServedWriter

    log = folder.with_suffix(".vllm.log")
    return ServedWriter(teacher.config, teacher.tokenizer, log, stack, eos_ids(teacher.model))


def _require_served(config: TrainConfig, teacher: Outline) -> str:
    from specalign.serving.environment import require_client

    require_client()
    from specalign.training.served import require_engine

    if teacher.kind == "encoder-decoder":
        raise UserError("vLLM serves no encoder-decoder text models: set engine.name = own")
    return require_engine(config)


WRITERS = {"own": Engine(_own), "vllm": Engine(_served, {"engine": "vllm"}, _require_served)}
"""Name of ``engine.name`` -> what writes then."""
