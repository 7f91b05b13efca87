"""What the runs of one command share: teacher, tokenizer, data, the teacher's responses, the student's start."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specalign.config import cache_dir
from specalign.data import Example, Prompt, load_splits
from specalign.data.examples import Split
from specalign.data.preflight import apart_note
from specalign.models.devices import multiply_in_tf32
from specalign.models.eagle_start import head_config
from specalign.models.load import (
    is_encoder_decoder,
    load_tokenizer,
    resolve_device,
)
from specalign.models.mask_token import give_masks
from specalign.models.properties import decoder_start_id, eos_ids
from specalign.models.released import is_released, take_head
from specalign.models.vocabulary import choose_draft_vocabulary, n_ids
from specalign.progress import progress_bar
from specalign.terminal import say
from specalign.training.config import DataConfig, TrainConfig, require_sliceable
from specalign.training.conversations import Limits, Told, told
from specalign.training.distributed import local_device, main_process_first, rank
from specalign.training.identity import model_identity, models_of, rows_identity
from specalign.training.prompts import columns, encoded, turns
from specalign.training.reuse import TeacherStates
from specalign.training.rollouts import Tokens, read_tensors, responses_key, stored_responses
from specalign.training.starts import Starts, existing_student
from specalign.training.student_config import StudentConfig
from specalign.training.teacher import asleep, load_teacher
from specalign.training.writers import WRITERS, Teacher

HELD_APART: tuple[Split, ...] = ("train", "validation", "test")
"""Parts of the data that share no document."""


@dataclass
class Materials:
    """Loaded once, used by every method of a comparison."""

    config: TrainConfig
    """The recipe that they were loaded for; methods differ only in what is read elsewhere."""
    device: torch.device
    tokenizer: PreTrainedTokenizerBase
    teacher: PreTrainedModel
    """Released (:mod:`specalign.models.released`) where the recipe says so and it is not needed yet, or any more."""
    train: list[Prompt]
    validation: list[Prompt]
    test: list[Prompt] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall seconds of each preparation, by name."""
    _told: dict[str, Told] = field(default_factory=dict)
    _teacher_states: TeacherStates | None = None
    _starts: dict[StudentConfig, PreTrainedModel] = field(default_factory=dict)
    _references: dict[str, PreTrainedModel] = field(default_factory=dict)
    _vocabularies: dict[int, Tensor] = field(default_factory=dict)
    rows: Mapping[str, str] = field(default_factory=dict)
    """Identity of the data's rows, by split."""
    _identities: dict[str, str] = field(default_factory=dict)

    @cached_property
    def n_tokens(self) -> int:
        """Ids that the tokenizer can produce, gaps between them included."""
        return n_ids(self.tokenizer)

    def identity(self, config: TrainConfig) -> dict[str, str]:
        """What a run of ``config`` is made of besides its recipe."""
        return {**self.rows, **{kind: self.model_identity(name) for kind, name in models_of(config).items()}}

    def model_identity(self, name: str) -> str:
        """Of a model's weights, found once."""
        if name not in self._identities:
            self._identities[name] = model_identity(
                name, trust_remote_code=self.config.teacher.trust_remote_code
            )
        return self._identities[name]

    @property
    def teacher_states(self) -> TeacherStates:
        """The teacher's states along fixed responses, filled as they are met."""
        if self._teacher_states is None:
            capacity = int(self.config.teacher.reuse_gib * 2**30)
            folder = self._states_folder() if self.config.teacher.reuse_on_disk else None
            self._teacher_states = TeacherStates(self.teacher, capacity, folder, device=self.device)
        return self._teacher_states

    def wake(self) -> PreTrainedModel:
        """The teacher with all its weights, loaded where it is released."""
        if is_released(self.teacher):
            self.teacher = load_teacher(self.config, self.device, self.tokenizer)
            if self._teacher_states is not None:
                self._teacher_states.teacher = self.teacher
        return self.teacher

    def has_its_head(self) -> bool:
        """Put the head that an earlier command kept into a teacher without weights, if there is one."""
        tensors = read_tensors(self.head_file) if self.config.teacher.reuse_on_disk else None
        if tensors is None:
            return False
        here = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        take_head(self.teacher, here["weight"], here.get("bias"))
        return True

    @property
    def head_file(self) -> Path:
        """The teacher's output head, for commands that need no more of it."""
        return cache_dir() / "heads" / f"{responses_key(self._teacher_facts())}.safetensors"

    def _states_folder(self) -> Path:
        return cache_dir() / "states" / responses_key(self._teacher_facts())

    def _teacher_facts(self) -> dict[str, str]:
        """What determines the teacher's states but the text."""
        return {
            "teacher": self.model_identity(self.config.teacher.model),
            "dtype": str(self.teacher.dtype),
            "quantization": self.config.teacher.quantization,
            "attention": self.teacher.config._attn_implementation,
            "device": self.device.type,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def prompts(self, split: Split) -> list[Prompt]:
        """The prompts of a split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def responses(self, split: Split) -> dict[str, Tokens]:
        """The teacher's response to each prompt of a split, from the cache where it is there."""
        return self._taught(split).responses

    def told(self, split: Split) -> dict[str, Prompt]:
        """The prompts of a split, by id, with the teacher's own earlier answers where these are trained on."""
        return self._taught(split).prompts

    def _taught(self, split: Split) -> Told:
        if split not in self._told:
            with self._timed(f"responses_{split}"):
                self._told[split] = self._teacher_writes(split)
        return self._told[split]

    def references(self, split: Split) -> dict[str, Tokens]:
        """The data set's reference for each prompt that has one."""
        prompts = self.prompts(split)
        limit = self.config.data.max_response_tokens
        return {prompt.id: prompt.reference_ids[:limit] for prompt in prompts if prompt.reference_ids}

    def draft_vocabulary(self, size: int) -> Tensor | None:
        """The ids that a trimmed drafter keeps: the most frequent ones of prompts and responses."""
        if not size or size >= self.n_tokens:
            return None
        if size not in self._vocabularies:
            texts = chain(self.responses("train").values(), self.references("train").values())
            prompts = (prompt.input_ids for prompt in self.told("train").values())
            always = [*eos_ids(self.teacher), *special_ids(self.tokenizer)]
            chosen = choose_draft_vocabulary(chain(texts, prompts), size, self.n_tokens, always)
            self._vocabularies[size] = chosen.to(self.device)
        return self._vocabularies[size]

    def student(self, config: StudentConfig) -> PreTrainedModel:
        """A fresh copy of the student as training starts from it."""
        if config not in self._starts:
            self._starts[config] = self._start(config)
            if config.drafts_in_parallel:
                self._give_masks(self._starts[config], config.parallel)
        return copy.deepcopy(self._starts[config])

    def _give_masks(self, student: PreTrainedModel, most: int) -> None:
        token = give_masks(student, self.tokenizer, most).token
        if rank() == 0:
            name = self.tokenizer.convert_ids_to_tokens(token)
            say(f"specalign-train: mask token: id {token}" + (f", {name}" if name else ""))

    def reference(self, name: str) -> PreTrainedModel:
        """The frozen drafter whose loss the selection of tokens subtracts."""
        if name not in self._references:
            found = existing_student(self.config, name, self.teacher, self.device, head=False)
            self._references[name] = found.eval().requires_grad_(False)
        return self._references[name]

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - begun

    def _start(self, config: StudentConfig) -> PreTrainedModel:
        if config.model:
            return existing_student(self.config, config.model, self.teacher, self.device, head=config.is_head)
        require_sliceable(self.config)
        starts = Starts(self.wake(), self._teacher_facts, self._alignment_texts, self._timed)
        if not config.is_head:
            return starts.student(config)
        ids, own = self.draft_vocabulary(config.draft_vocabulary), self.config
        made_for = head_config(
            self.teacher.config,
            config.reads,
            0 if ids is None else len(ids),
            verifier=own.teacher.model,
            n_draft=own.logging.probe_gamma,
        )
        return starts.head(config, ids, made_for, own.seed)

    def _alignment_texts(self, n_tokens: int) -> list[tuple[Tokens, ...]]:
        """Prompts with the teacher's responses, until ``n_tokens`` are reached; (encoder's, decoder's) text each
        where there is an encoder.
        """
        chosen: list[tuple[Tokens, ...]] = []
        responses = self.responses("train")
        start = decoder_start_id(self.teacher) if self.teacher.config.is_encoder_decoder else None
        for prompt in self.train:
            if sum(len(text[-1]) for text in chosen) >= n_tokens:
                break
            response, asked = responses[prompt.id], self.told("train")[prompt.id].input_ids
            chosen.append((asked + response,) if start is None else (asked, (start, *response)))
        return chosen

    def _teacher_writes(self, split: Split) -> Told:
        config = self.config
        prompts = self.prompts(split)
        temperature = config.rollout.teacher_temperature
        facts: dict[str, object] = {
            "teacher": self.model_identity(config.teacher.model),
            "dtype": str(self.teacher.dtype),
            "quantization": config.teacher.quantization,
            "temperature": temperature,
            "max_new_tokens": config.data.max_response_tokens,
            "seed": config.seed if temperature else 0,
            "ends": eos_ids(self.teacher),
        }
        n_answers = sum(1 + len(prompt.spans) for prompt in prompts)
        engine = WRITERS[config.engine.name]
        facts |= engine.facts
        folder = cache_dir() / "responses" / responses_key(facts)
        with (
            main_process_first(),
            ExitStack() as stack,
            progress_bar(f"teacher's responses ({split})", n_answers) as bar,
        ):
            writer = engine.writer(Teacher(config, self.teacher, self.tokenizer, self.wake), folder, stack)
            write = partial(
                stored_responses,
                folder,
                writer,
                max_new_tokens=config.data.max_response_tokens,
                seed=config.seed,
                progress=bar.advance,
            )
            limits = Limits(eos_ids(self.teacher), config.data.max_prompt_tokens)
            found = told(prompts, write, limits, turns(config.data, self.tokenizer))
        if found.n_shortened and rank() == 0:
            say(
                f"specalign-train: {found.n_shortened} of {len({prompt.row_id for prompt in prompts})} conversations "
                f"({split}) end early: with the "
                "teacher's answers the next prompt would exceed data.max_prompt_tokens"
            )
        return found


def load_materials(config: TrainConfig) -> Materials:
    """Load teacher, tokenizer and data, of a checked config. Raises UserError for data that do not fit."""
    device = resolve_device(local_device(config.device))
    if config.optimiser.precision != "float32":
        multiply_in_tf32(device)
    splits = load_data(config.data)
    tokenizer = load_tokenizer(config.teacher.model, trust_remote_code=config.teacher.trust_remote_code)

    keep_end = is_encoder_decoder(config.teacher.model, trust_remote_code=config.teacher.trust_remote_code)
    # what is wrong with the prompts is said before a model is loaded
    train, validation, test = (
        encoded(config.data, splits.get(split, []), tokenizer, keep_end=keep_end) for split in HELD_APART
    )
    load = asleep if config.teacher.offload != "none" else load_teacher
    teacher = load(config, device, tokenizer)
    materials = Materials(
        config, device, tokenizer, teacher, train, validation, test, rows=rows_identity(splits)
    )
    if is_released(teacher) and not materials.has_its_head():
        materials.wake()
    _tell_how_data_fit(materials)
    return materials


def data_facts(materials: Materials) -> dict[str, int]:
    """How many prompts there are, and what of them was cut to fit."""
    prompts = [*materials.train, *materials.validation, *materials.test]
    limit = materials.config.data.max_response_tokens
    cut = [prompt.n_truncated for prompt in prompts if prompt.n_truncated]
    return {
        "n_train": len(materials.train),
        "n_validation": len(materials.validation),
        "n_test": len(materials.test),
        "n_truncated_prompts": len(cut),
        "n_truncated_prompt_tokens": sum(cut),
        "n_cut_turns": sum(prompt.n_cut_turns for prompt in prompts),
        "n_turn_prompts": sum(bool(prompt.conversation) for prompt in prompts),
        "n_truncated_references": sum(len(prompt.reference_ids) > limit for prompt in prompts),
    }


def _tell_how_data_fit(materials: Materials) -> None:
    facts = data_facts(materials)
    n_prompts = sum(facts[f"n_{split}"] for split in HELD_APART)
    if rank() == 0 and facts["n_turn_prompts"]:
        say(f"specalign-train: {apart_note(facts['n_turn_prompts'])}")
    if rank() == 0 and (facts["n_truncated_prompts"] or facts["n_truncated_references"]):
        say(
            f"specalign-train: of {n_prompts} prompts, {facts['n_truncated_prompts']} "
            f"are cut to data.max_prompt_tokens (by {facts['n_truncated_prompt_tokens']} tokens in all, "
            f"{facts['n_cut_turns']} oldest turns of conversations among them), and "
            f"{facts['n_truncated_references']} references to data.max_response_tokens",
        )


def load_data(data: DataConfig) -> dict[Split, list[Example]]:
    """The examples of each split, limited as the recipe says; no document is in two splits."""
    limits: dict[Split, int | None] = {"train": data.n_train or None, "validation": data.n_validation}
    return load_splits(
        data.source,
        limits | ({"test": data.n_test} if data.n_test else {}),
        columns=columns(data),
        skip_bad_rows=data.skip_bad_rows,
        tell=lambda line: say(f"specalign-train: {line}") if rank() == 0 else None,
    )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokenizer's special tokens."""
    return [int(id_) for id_ in tokenizer.all_special_ids]
