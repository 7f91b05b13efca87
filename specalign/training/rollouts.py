"""Where training sequences come from: references, the teacher, the student, or a mix, behind one function."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from specalign.data import Prompt
from specalign.decoding.generate import generate
from specalign.files import atomic_path
from specalign.models.properties import decoder_start_id
from specalign.training.config import RolloutConfig
from specalign.training.rows import Branch, Row

Tokens = tuple[int, ...]
SHARD = 128
"""Prompts whose responses are stored in one file: what an interruption can lose."""
FIRST = 2
"""Place of the first token that is scored where prompts are: a head drafts after two."""


@dataclass(frozen=True)
class Writer:
    """A model that writes responses, and how."""

    model: PreTrainedModel
    temperature: float
    top_p: float = 1.0
    head_ids: Tensor | None = None
    batch: int = 32

    @property
    def device(self) -> torch.device:
        """Of the generator that it draws from."""
        return self.model.device

    def write(
        self,
        prefixes: Sequence[Sequence[int]],
        max_new_tokens: int,
        generator: torch.Generator | None,
        written: Sequence[Sequence[int]] = (),
    ) -> list[Tokens]:
        """One continuation of each prefix, up to its end-of-sequence token; eval mode, without gradients.

        The prefixes of an encoder-decoder model are its prompts; ``written`` is what its decoder goes on from.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            return self._write(prefixes, max_new_tokens, generator, written)
        finally:
            self.model.train(was_training)

    def _write(
        self,
        prefixes: Sequence[Sequence[int]],
        max_new_tokens: int,
        generator: torch.Generator | None,
        written: Sequence[Sequence[int]],
    ) -> list[Tokens]:
        found: list[Tokens] = []
        for begin in range(0, len(prefixes), self.batch):
            done = generate(
                self.model,
                None,
                prefixes[begin : begin + self.batch],
                gamma=0,
                temperature=self.temperature,
                top_p=self.top_p,
                max_new_tokens=max_new_tokens,
                generator=generator,
                head_ids=self.head_ids,
                written=written[begin : begin + self.batch],
            )
            found += map(tuple, done.token_ids)
        return found


class Writes(Protocol):
    """A :class:`Writer`, or something that writes in its place."""

    @property
    def device(self) -> torch.device:
        """Of the generator that it draws from."""

    def write(
        self, prefixes: Sequence[Sequence[int]], max_new_tokens: int, generator: torch.Generator | None
    ) -> list[Tokens]:
        """One continuation of each prefix."""


def stored_responses(
    folder: Path,
    writer: Writes,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, Tokens]:
    """The writer's response to each prompt, by prompt id: read from ``folder``, or generated and stored there.

    ``folder`` must be named after everything that determines the responses but the prompts: see
    :func:`responses_key`. Prompts are handled in shards of 128, each sampled from a generator of its own, so
    that what is on disk after an interruption stays valid. ``progress`` is told the number of prompts done.
    """
    responses: dict[str, Tokens] = {}
    for begin in range(0, len(prompts), SHARD):
        shard = prompts[begin : begin + SHARD]
        path = folder / f"{_digest(str([prompt.input_ids for prompt in shard]))}.safetensors"
        texts = _read_shard(path, len(shard))
        if texts is None:
            generator = torch.Generator(writer.device).manual_seed(seed + begin)
            texts = _generate_shard(writer, shard, max_new_tokens, generator)
            _write_shard(path, texts)
        responses |= {prompt.id: text for prompt, text in zip(shard, texts, strict=True)}
        progress(len(shard))
    return responses


def responses_key(facts: Mapping[str, object]) -> str:
    """A folder name from everything that determines the teacher's responses."""
    return _digest(repr(sorted(facts.items())))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _generate_shard(
    writer: Writes, prompts: Sequence[Prompt], max_new_tokens: int, generator: torch.Generator
) -> list[Tokens]:
    """Prompts of similar length together, so that little is padding."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].input_ids))
    written = writer.write([prompts[index].input_ids for index in order], max_new_tokens, generator)
    return [text for _, text in sorted(zip(order, written, strict=True))]


def _write_shard(path: Path, texts: Sequence[Tokens]) -> None:
    tensors = {
        "tokens": torch.tensor([token for text in texts for token in text], dtype=torch.int32),
        "lengths": torch.tensor([len(text) for text in texts]),
    }
    with atomic_path(path) as partial:
        save_file(tensors, partial)


def _read_shard(path: Path, n_prompts: int) -> list[Tokens] | None:
    tensors = read_tensors(path)
    if tensors is None:
        return None
    lengths = tensors["lengths"].tolist()
    if len(lengths) != n_prompts:
        return None
    return [tuple(part.tolist()) for part in tensors["tokens"].split(lengths)]


def read_tensors(path: Path) -> dict[str, torch.Tensor] | None:
    """A safetensors file of a cache; None where there is none, or a damaged one: it is then made again."""
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None


@dataclass(frozen=True)
class Policy:
    """How the rows of a step are made."""

    config: RolloutConfig
    max_response_tokens: int
    references: Mapping[str, Tokens]
    responses: Mapping[str, Tokens]
    """The teacher's, by prompt id; empty where the method needs none."""
    told: Mapping[str, Prompt] = field(default_factory=dict)
    """The prompts of conversations that have the teacher's own earlier answers, by prompt id."""
    head: bool = False
    """Whether the student is a head, which writes no response but drafts off the trunk's tokens."""

    def rows(self, prompts: Sequence[Prompt], student: Writer, generator: torch.Generator) -> list[Row]:
        """One row a prompt, each by its own draw of who writes it. ``generator`` is a CPU generator."""
        on_policy = self._draw(len(prompts), generator)
        k = self._draw_k(generator)
        plans = [
            self._plan(prompt, mine, student.model, generator)
            for prompt, mine in zip(prompts, on_policy, strict=True)
        ]
        starts = [(index, start) for index, (_, places) in enumerate(plans) for start in places]
        rows = [plan for plan, _ in plans]
        prefixes = [rows[index].encoder or rows[index].trunk[:start] for index, start in starts]
        begun = [rows[index].trunk[1:start] for index, start in starts if rows[index].encoder]
        seed = int(torch.randint(2**62, (), generator=generator))
        sampler = torch.Generator(student.model.device).manual_seed(seed)
        written = student.write(prefixes, k, sampler, begun) if prefixes else []
        branches: list[list[Branch]] = [[] for _ in prompts]
        for (index, start), tokens in zip(starts, written, strict=True):
            branches[index].append(Branch(start, tokens))
        return [replace(row, branches=tuple(grown)) for (row, _), grown in zip(plans, branches, strict=True)]

    def _draw(self, n: int, generator: torch.Generator) -> list[bool]:
        """Whether the student writes each of ``n`` sequences."""
        return (torch.rand(n, generator=generator) < self.config.student_share).tolist()

    def _draw_k(self, generator: torch.Generator) -> int:
        """Tokens of this step's rollouts."""
        if self.config.style == "full":
            return self.max_response_tokens
        return int(torch.randint(1, self.config.k_max + 1, (), generator=generator))

    def _plan(
        self, prompt: Prompt, on_policy: bool, student: PreTrainedModel, generator: torch.Generator
    ) -> tuple[Row, list[int]]:
        """The row without its branches, and the trunk positions where these start."""
        full = on_policy and self.config.style == "full"
        from_teacher = full or self._from_teacher(on_policy)
        asked = self.told.get(prompt.id, prompt) if from_teacher else prompt
        head: Tokens = asked.input_ids
        encoder: Tokens = ()
        if student.config.is_encoder_decoder:
            head, encoder = (decoder_start_id(student),), asked.input_ids
        if full:
            return Row(head, len(head), (), encoder, on_policy=True), [len(head)]
        response = self._response(prompt, from_teacher)
        spans = tuple((begin, min(end, begin + self.max_response_tokens)) for begin, end in asked.spans)
        n_prompt = len(head)
        if self.config.prompts and (self.head or not on_policy):  # earlier responses with what is between
            n_prompt, spans = min(len(head), FIRST), ()
        row = Row(head + response, n_prompt, (), encoder, on_policy and not self.head, spans)
        if not on_policy:
            return row, []
        if self.head:
            return replace(row, anchors=self._anchors(row, generator)), []
        places = torch.randperm(len(response), generator=generator)[: self.config.branches]
        return row, [len(head) + place for place in sorted(places.tolist())]

    def _anchors(self, row: Row, generator: torch.Generator) -> tuple[int, ...]:
        """Where a head begins drafts: up to ``branches`` of the tokens that it is trained on."""
        scored = [place for part in row.scored for place in range(part.start, part.end)]
        chosen = torch.randperm(len(scored), generator=generator)[: self.config.branches]
        return tuple(scored[each] for each in sorted(chosen.tolist()))

    def fixed(self, prompt: Prompt, model: PreTrainedModel) -> Row:
        """The row that is trained on where the student does not write it; ``model`` is of the student's kind."""
        return self._plan(prompt, False, model, torch.Generator())[0]

    def _from_teacher(self, on_policy: bool) -> bool:
        """Whether the trunk is the teacher's response, or the data's."""
        return self.config.trunk == "teacher" if on_policy else self.config.source != "ground_truth"

    def _response(self, prompt: Prompt, from_teacher: bool) -> Tokens:
        found = self.responses[prompt.id] if from_teacher else self.references[prompt.id]
        return found[: self.max_response_tokens]


def needs_responses(config: RolloutConfig) -> bool:
    """Whether the teacher's responses are used as data or as trunks."""
    as_trunk = config.style == "branches" and config.trunk == "teacher"
    return config.source in ("teacher", "mixed") or (config.source == "student" and as_trunk)


def needs_references(config: RolloutConfig) -> bool:
    """Whether the data set's references are used as data or as trunks."""
    as_trunk = config.style == "branches" and config.trunk == "ground_truth"
    return config.source == "ground_truth" or (config.source in ("student", "mixed") and as_trunk)
