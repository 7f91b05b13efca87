"""Building a run: the student as it starts, its data, objective, optimiser, and the checkpoint that it goes on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specalign.data import Prompt
from specalign.errors import UserError
from specalign.losses import LOSSES, Objective, hyper_parameters, objective
from specalign.models.eagle import EagleHead
from specalign.models.mask_token import Masks, masks_of
from specalign.terminal import say
from specalign.training import distributed, folder
from specalign.training.checkpoints import Position, list_checkpoints, load_checkpoint, read_best, sweep
from specalign.training.config import PLUGIN, UNTRAINED, ObjectiveConfig, TrainConfig
from specalign.training.materials import HELD_APART, Materials
from specalign.training.optimiser import adamw
from specalign.training.plugins import NONE, Plugins, plugin_of, try_out
from specalign.training.recipe import completed
from specalign.training.reuse import TeacherStates
from specalign.training.rollouts import FIRST, Policy, needs_references, needs_responses
from specalign.training.scoring import Pair, can_pack
from specalign.training.sharding import shard
from specalign.training.student_config import StudentConfig
from specalign.training.tracking import Trackers
from specalign.training.validation import Validation, make_validation

NUMBERS = (bool, int, float)
Validations = Callable[[tuple[int, ...]], Validation]
"""From the layers that a student reads to what its command validates on."""


@dataclass
class Run:
    """One training run in progress."""

    config: TrainConfig
    path: Path
    pair: Pair
    policy: Policy
    prompts: Sequence[Prompt]
    objective: Objective
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    """CPU generator of rollouts and mix."""
    validation: Validation
    packed: bool
    masks: Masks | None = None
    """What a parallel drafter is trained with; None: it drafts one token a call."""
    reference: Pair | None = None
    """The drafter whose loss the selection of tokens subtracts, with the student's head; None: no such drafter."""
    teacher_states: TeacherStates | None = None
    """The teacher's states along fixed responses; None: computed anew in every step."""
    scaler: torch.amp.GradScaler | None = None
    """Scales the loss of float16 training; None in other precisions."""
    trackers: Trackers | None = None
    """Experiment trackers of rank 0, open while the loop runs."""
    position: Position = field(default_factory=Position)
    step_s: float = 0.0
    """Seconds of the last step."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Trained ones."""
        return [parameter for parameter in self.pair.student.parameters() if parameter.requires_grad]

    def autocast(self) -> AbstractContextManager[Any]:
        """Half precision where the recipe or the device asks for it."""
        kind, device = self.config.optimiser.precision, self.pair.student.device
        if kind == "float16":
            return torch.autocast(device.type, dtype=torch.float16)
        if kind == "bfloat16" or (kind == "auto" and device.type == "cuda"):
            return torch.autocast(device.type, dtype=torch.bfloat16)
        return nullcontext()


def start_run(
    config: TrainConfig,
    materials: Materials,
    validations: Validations | None = None,
    plugins: Plugins = NONE,
) -> Run:
    """Everything that the loop needs, at step 0. What it validates on is laid out here where a caller shares none."""
    config = completed(config)
    validate = validations or partial(make_validation, materials, "validation")
    student = materials.student(config.student)
    student.config._name_or_path = str(config.output)  # a slice has its teacher's: errors name the run
    if config.optimiser.gradient_checkpointing:
        if not student.supports_gradient_checkpointing:
            raise UserError(f"optimiser.gradient_checkpointing: {type(student).__name__} does not support it")
        student.gradient_checkpointing_enable({"use_reentrant": False})
    if config.optimiser.sharded == "weights" and distributed.world_size() > 1:
        shard(student)
    pair = Pair(
        student,
        materials.teacher,
        materials.n_tokens,
        vocabulary_of(student, config, materials),
        torch.compile(student.get_decoder(), dynamic=True) if config.optimiser.compile else None,
        config.student.unroll,
        config.student.decay,
    )
    if pair.reads:
        require_long_prompts(materials)
    trains = config.method not in UNTRAINED
    masks = masks_trained(config.student, student)
    prompts, policy = usable_data(config, materials) if trains else ([], Policy(config.rollout, 1, {}, {}))
    return Run(
        config,
        config.output,
        pair,
        policy,
        prompts,
        build_objective(config.objective, plugins),
        adamw(student, config.optimiser),
        torch.Generator().manual_seed(config.seed),
        validation=replace(validate(pair.reads), gamma=config.logging.probe_gamma),
        reference=reference_of(config, materials, pair) if trains else None,
        packed=not masks and config.rollout.packed and can_pack(student) and can_pack(materials.teacher),
        masks=masks,
        teacher_states=materials.teacher_states if config.teacher.reuse_states else None,
        scaler=torch.amp.GradScaler(student.device.type) if config.optimiser.precision == "float16" else None,
    )


def masks_trained(config: StudentConfig, student: PreTrainedModel) -> Masks | None:
    """The mask token, where the recipe trains it. Raises UserError for a student that takes no mask between tokens."""
    if not config.drafts_in_parallel:
        return None
    if not can_pack(student):
        raise UserError(
            f"student.parallel = {config.parallel} needs a decoder-only student with full or sliding attention (sdpa "
            f"or eager), not {type(student).__name__}"
        )
    return masks_of(student.config)


def vocabulary_of(student: PreTrainedModel, config: TrainConfig, materials: Materials) -> Tensor | None:
    """[V'] the ids that the drafter's output has: those of the recipe, or a head's own; None: all."""
    if isinstance(student, EagleHead):
        return student.draft_ids if student.is_trimmed else None
    return materials.draft_vocabulary(config.student.draft_vocabulary)


def require_long_prompts(materials: Materials) -> None:
    """Raise UserError where a prompt has one token: a head drafts after two."""
    for split in HELD_APART:
        short = [prompt.id for prompt in materials.prompts(split) if len(prompt.input_ids) < FIRST]
        if short:
            raise UserError(
                f"{split} prompt {short[0]!r} has fewer than {FIRST} tokens: a head drafts after two"
            )


def reference_of(config: TrainConfig, materials: Materials, pair: Pair) -> Pair | None:
    """AdaSPEC's reference drafter beside the same teacher, over the ids of the student's head."""
    name = config.objective.reference
    return replace(pair, student=materials.reference(name), decoder=None) if name else None


def usable_data(config: TrainConfig, materials: Materials) -> tuple[list[Prompt], Policy]:
    """The prompts that have the responses which the method needs, and the policy that uses these."""
    rollout = config.rollout
    references = materials.references("train") if needs_references(rollout) else {}
    responses = materials.responses("train") if needs_responses(rollout) else {}
    prompts = [
        prompt
        for prompt in materials.train
        if (not needs_references(rollout) or references.get(prompt.id))
        and (not needs_responses(rollout) or responses.get(prompt.id))
    ]
    if not prompts:
        raise UserError(f"data {config.data.source!r} has no references; choose another rollout.source")
    told = materials.told("train") if responses else {}
    longest, is_head = config.data.max_response_tokens, config.student.is_head
    return prompts, Policy(rollout, longest, references, responses, told, is_head)


def build_objective(config: ObjectiveConfig, plugins: Plugins = NONE) -> Objective:
    """The objective of a recipe, its numbers cast to the kinds that each loss has by default.

    Raises UserError for a plugin that is not found, or that no loss can be (:func:`plugins.try_out`).
    """
    plugin = plugin_of(config, plugins)
    own = {PLUGIN: plugin.loss} if plugin else {}
    kinds = {
        key: type(default)
        for name in config.weights
        if name in LOSSES or name in own
        for key, default in hyper_parameters(name, own).items()
        if isinstance(default, NUMBERS)
    }
    hyper = {key: kinds.get(key, float)(value) for key, value in config.hyper.items()}
    built = objective(
        config.weights, hyper, teacher_temperature=config.teacher_temperature, keep=config.keep, own=own
    )
    if plugin:
        try_out(plugin, next(chosen for name, _, chosen in built.terms if name == PLUGIN))
    return built


def resume(run: Run) -> None:
    """Go on from the last checkpoint, if there is one, with the best weights that are there."""
    if distributed.rank() == 0:
        sweep(run.path)
    checkpoints = list_checkpoints(run.path)
    if checkpoints:
        run.position = load_checkpoint(
            checkpoints[-1], run.pair.student, run.optimiser, run.generator, run.scaler
        )
        kept = read_best(run.path)
        run.position.best_metric = kept.value if kept and kept.metric == run.config.result.metric else None
        if distributed.rank() == 0:
            say(f"{run.path}: resuming after step {run.position.step}")
    distributed.wait_for_all()
    if distributed.rank() == 0:
        folder.rewind_log(run.path, run.position.step if checkpoints else -1)
