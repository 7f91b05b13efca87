"""What a recipe needs, before anything is loaded: parameters, bytes by kind, the largest batch, arithmetic."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig

from specalign.errors import UserError
from specalign.losses import needs_of
from specalign.losses.chunked import chunk_bytes
from specalign.models.eagle import EagleConfig, EagleHead, read_head_config
from specalign.models.eagle_start import N_STATES, head_config
from specalign.models.load import BITS, resolve_device, resolve_dtype, resolve_model
from specalign.models.preflight import device_memory_bytes
from specalign.terminal import say
from specalign.training.config import TrainConfig

LOGIT_COPIES = 12
"""Tensors of the size of one chunk of float32 logits that are alive together in losses.chunked."""
SHOWN = ("weights", "copies", "gradients", "optimiser", "activations", "logits", "rollouts", "total")
ACTIVATIONS_PER_LAYER = 34
"""Bytes of activations per token, layer and hidden unit at two bytes a number, attention scores aside
(Korthikanti et al. 2022, arXiv:2205.05198, section 4)."""


@dataclass(frozen=True)
class Plan:
    """Bytes of one process."""

    student_parameters: int
    teacher_parameters: int
    weights: int
    """Both models; of a teacher that is released before training (``teacher.offload``) the head alone."""
    copies: int
    """Of the student: as it starts, kept for the command's other runs, and in half precision while autocast lasts."""
    gradients: int
    optimiser: int
    activations: int
    """Of one forward and backward pass of ``optimiser.batch`` prompts."""
    logits: int
    rollouts: int
    """The caches of the student's responses, before the pass; theirs is the same memory."""
    released: int
    """Of the teacher, what is given back before training; 0 where it stays."""
    scoring: int
    """What is there before that: the teacher, and the slice that training starts from; 0 where it stays."""
    states: int
    """The teacher's states of fixed responses that are kept, at most, on disk or in main memory; 0: none are."""
    flops_per_token: float
    """Of rollout, scoring and update, for one trained token."""

    @property
    def total(self) -> int:
        """All that is there at the same time, before the teacher is released or after."""
        training = self.lasting + max(self.activations + self.logits, self.rollouts)
        return max(training, self.scoring)

    @property
    def lasting(self) -> int:
        """What is there all the time."""
        return self.weights + self.copies + self.gradients + self.optimiser


def make_plan(config: TrainConfig, processes: int = 1) -> Plan:
    """Count parameters on the meta device and estimate bytes; an estimate, activations above all.

    ``processes`` divide among them what ``optimiser.sharded`` says; while the student writes it is whole on each.
    """
    device = resolve_device(config.device)
    teacher_config = _model_config(config.teacher.model, config)
    teacher = _n_parameters(teacher_config)
    student_config = _student_config(config, teacher_config)
    student = _n_parameters(student_config)
    trained = student - _n_frozen(student_config)
    size = resolve_dtype(config.teacher.dtype, device).itemsize
    bits = BITS[config.teacher.quantization] or 8 * size
    whole = int(teacher * bits / 8)
    head = int(_body_and_head(teacher_config, teacher)[1] * size)
    released = 0 if config.teacher.offload == "none" else whole - head
    beside = _scored_per_prompt(config) * _masks_per_token(config)
    beside += _drafted_per_prompt(config) / config.student.unroll  # whose steps the text's tokens count for
    tokens = int(config.optimiser.batch * (_tokens_per_prompt(config) + beside))
    sharded = config.optimiser.sharded
    layers = _body_and_head(student_config, student)[0] if sharded == "weights" else 0.0
    own, moved = (int(n - layers + layers / processes) for n in (student, trained))
    return Plan(
        student,
        teacher,
        weights=4 * own + whole - released,
        copies=4 * student + (2 * student if _halves(config) else 0),
        gradients=4 * moved,
        optimiser=8 * trained // processes if sharded == "moments" else 8 * moved,
        activations=_activations(config, student_config, tokens),
        logits=LOGIT_COPIES * chunk_bytes(device),
        rollouts=_rollouts(config, student_config),
        released=released,
        scoring=(whole + (0 if config.student.model else 4 * student)) if released else 0,
        states=_states(config, teacher_config, size),
        flops_per_token=_flops_per_token(config, (student_config, student), (teacher_config, teacher)),
    )


def largest_batch(config: TrainConfig, plan: Plan, memory: int) -> int:
    """Prompts of one pass that fit into ``memory`` bytes beside everything else; 0 where none does."""
    if memory < plan.lasting + plan.rollouts:
        return 0
    per_prompt = plan.activations / config.optimiser.batch
    return max(0, int((memory - plan.lasting - plan.logits) / per_prompt))


def print_plan(
    config: TrainConfig,
    *,
    memory_gib: float | None = None,
    tflops: float | None = None,
    processes: int | None = None,
) -> None:
    """The plan as a table, for so much memory (None: this machine's device's) and so many TFLOP/s a process."""
    plan = make_plan(config, processes or 1)
    device = resolve_device(config.device)
    memory = device_memory_bytes(device) if memory_gib is None else int(memory_gib * 2**30)
    owner = f"{device} has" if memory_gib is None else "with"
    lines = [
        f"{config.method}: student {plan.student_parameters / 1e6:.1f} M parameters, "
        f"teacher {plan.teacher_parameters / 1e6:.1f} M ({config.teacher.quantization})",
        *(
            [f"  each of {processes} processes, optimiser.sharded = {config.optimiser.sharded}:"]
            if processes
            else []
        ),
        *(f"  {name:<12} {getattr(plan, name) / 2**30:8.2f} GiB" for name in SHOWN),
        f"  {owner} {memory / 2**30:.1f} GiB: optimiser.batch up to about {largest_batch(config, plan, memory)}",
        *_of_the_teacher(config, plan),
        f"  {plan.flops_per_token / 1e9:.1f} GFLOP a trained token, cached responses and states aside",
    ]
    if tflops is not None:
        rate = tflops * 1e12 / plan.flops_per_token
        lines.append(f"  at {tflops:g} TFLOP/s at most {rate:,.0f} trained tokens per second and process")
    say("\n".join(lines))


def _of_the_teacher(config: TrainConfig, plan: Plan) -> list[str]:
    """What is kept of it, and what is given back."""
    lines = []
    if drafted := _drafted_per_prompt(config):
        lines.append(
            f"  the teacher reads {config.rollout.student_share:.0%} of the texts once more, each with "
            f"{drafted} drafted tokens"
        )
    if plan.states:
        place = "on disk" if config.teacher.reuse_on_disk else "in main memory"
        lines.append(f"  the teacher's states: up to {plan.states / 2**30:.2f} GiB {place}")
    if plan.released:
        lines.append(
            f"  before training {plan.scoring / 2**30:.2f} GiB, of which {plan.released / 2**30:.2f} GiB "
            "of the teacher are given back"
        )
    return lines


def _states(config: TrainConfig, teacher: PreTrainedConfig, size: int) -> int:
    """d numbers a token of each response that is met, at its longest; at most ``teacher.reuse_gib``.

    For a head further 3 d of each token of the row, and with ``rollout.prompts`` d of those of the prompt.
    """
    if not config.teacher.reuse_states:
        return 0
    data, budget, longest = config.data, config.budget, config.data.max_response_tokens
    a_step = config.optimiser.batch * config.optimiser.accumulation * longest
    limits = [data.n_train * longest, budget.steps * a_step, budget.tokens and budget.tokens + a_step]
    room = int(config.teacher.reuse_gib * 2**30)
    if not any(limits):
        return room
    n_tokens = min(limit for limit in limits if limit) + (data.n_validation + data.n_test) * longest
    also = N_STATES * _tokens_per_prompt(config) if config.student.is_head else 0
    also += data.max_prompt_tokens if config.rollout.prompts else 0
    return min(room, int(n_tokens * (1 + also / longest)) * teacher.get_text_config().hidden_size * size)


def _model_config(name: str, config: TrainConfig) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(
            resolve_model(name), trust_remote_code=config.teacher.trust_remote_code
        )
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the config of model {name!r}: {str(error).splitlines()[0]}") from None


def _student_config(config: TrainConfig, teacher: PreTrainedConfig) -> PreTrainedConfig:
    if config.student.is_head:
        name = config.student.model
        return (
            read_head_config(name)
            if name
            else head_config(teacher, config.student.reads, config.student.draft_vocabulary)
        )
    if config.student.model:
        return _model_config(config.student.model, config)
    student: Any = copy.deepcopy(teacher)
    n_layers = len(config.student.layers) or config.student.n_layers
    if student.is_encoder_decoder:
        student.num_decoder_layers = n_layers
        student.num_layers = config.student.n_encoder_layers or student.num_layers
        return student
    text = student.get_text_config()
    text.num_hidden_layers = n_layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:n_layers]
    return student


def _n_parameters(config: PreTrainedConfig) -> int:
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = EagleHead(config) if isinstance(config, EagleConfig) else auto.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _n_frozen(config: PreTrainedConfig) -> int:
    """Parameters that are copied and not trained: a head's embedding."""
    text: Any = config.get_text_config()
    return text.vocab_size * text.hidden_size if isinstance(config, EagleConfig) else 0


def _flops_per_token(
    config: TrainConfig, student: tuple[PreTrainedConfig, int], teacher: tuple[PreTrainedConfig, int]
) -> float:
    """Two a parameter and token forward, four backward; heads on scored tokens alone; attention scores aside.

    An encoder-decoder model counts as if every token passed through both towers.
    """
    scored = _scored_per_prompt(config)
    tokens = _tokens_per_prompt(config)
    masks = scored * _masks_per_token(config)
    passes = 8 if config.optimiser.gradient_checkpointing else 6
    is_head, share = config.student.is_head, config.rollout.student_share
    own = 0.0 if is_head else share
    drafted = share * _drafted_per_prompt(config)
    (student_body, student_head), (teacher_body, teacher_head) = (
        _body_and_head(*student),
        _body_and_head(*teacher),
    )
    if config.student.draft_vocabulary and not config.student.is_head:
        student_head *= min(1.0, config.student.draft_vocabulary / student[0].get_text_config().vocab_size)
    steps = config.student.unroll if is_head else 1
    whole = steps * (passes + 2 * own) * (student_body * tokens + student_head * (scored - drafted))
    whole += (passes * masks + (passes + 2) * drafted) * (student_body + student_head)
    if is_head or any(needs_of(name).teacher for name in config.objective.weights):
        whole += 2 * (teacher_body * tokens + teacher_head * scored)
    if drafted:
        whole += 2 * teacher_body * (share * tokens + drafted)
    return whole / scored


def _body_and_head(config: PreTrainedConfig, n_parameters: int) -> tuple[float, float]:
    """Parameters that every token passes through, and those of the head."""
    text: Any = config.get_text_config()
    if isinstance(config, EagleConfig):
        rows = (config.draft_vocab_size or text.vocab_size) * text.hidden_size
        return n_parameters - rows - text.vocab_size * text.hidden_size, rows
    head = text.vocab_size * text.hidden_size
    return n_parameters - head * (1 if text.tie_word_embeddings else 2), head


def _scored_per_prompt(config: TrainConfig) -> float:
    """Trained tokens of one prompt, where responses are as long as they may be."""
    rollout = config.rollout
    written = config.data.max_response_tokens
    branched = rollout.branches * (1 + rollout.k_max) / 2 if rollout.style == "branches" else written
    given = _given_per_prompt(config)
    if config.student.is_head:
        return given + rollout.student_share * _drafted_per_prompt(config)
    return rollout.student_share * branched + (1 - rollout.student_share) * given


def _drafted_per_prompt(config: TrainConfig) -> int:
    """Tokens of a head's own drafts off one text, where it drafts off it: the teacher reads them beside the text."""
    if not (config.student.is_head and config.rollout.student_share):
        return 0
    return min(config.rollout.branches, _given_per_prompt(config)) * (config.student.unroll - 1)


def _given_per_prompt(config: TrainConfig) -> int:
    """Tokens of one text that the student did not write, where they are trained on."""
    return config.data.max_response_tokens + (config.data.max_prompt_tokens if config.rollout.prompts else 0)


def _masks_per_token(config: TrainConfig) -> float:
    """Mask tokens of a parallel drafter beside each trained token, but for those near the end of a response."""
    student = config.student
    return sum(max(student.parallel_keep**k, student.parallel_floor) for k in range(1, student.parallel))


def _tokens_per_prompt(config: TrainConfig) -> int:
    """Tokens of one prompt's row at their longest."""
    rollout, data = config.rollout, config.data
    branched = rollout.student_share and rollout.style == "branches" and not config.student.is_head
    extra = rollout.branches * (rollout.k_max - 1) if branched else 0
    return data.max_prompt_tokens + data.max_response_tokens + extra


def _halves(config: TrainConfig) -> bool:
    """Whether the student's passes run in half precision, under autocast."""
    precision = config.optimiser.precision
    return precision in ("bfloat16", "float16") or (
        precision == "auto" and resolve_device(config.device).type == "cuda"
    )


def _rollouts(config: TrainConfig, student: Any) -> int:
    """Keys and values of the responses that the student writes at a time, each as long as it may become."""
    rollout, data, text = config.rollout, config.data, student.get_text_config()
    if not rollout.student_share or config.student.is_head:
        return 0
    branched = rollout.style == "branches"
    prompts = min(rollout.batch, config.optimiser.batch * config.optimiser.accumulation)
    tokens = data.max_prompt_tokens + data.max_response_tokens + (rollout.k_max if branched else 0)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or getattr(text, "d_kv", None)
    size = size or text.hidden_size // text.num_attention_heads
    layers = getattr(text, "num_decoder_layers", None) or text.num_hidden_layers
    number = 2 if _halves(config) else 4
    return prompts * (rollout.branches if branched else 1) * tokens * 2 * layers * heads * size * number


def _activations(config: TrainConfig, student: Any, tokens: int) -> int:
    text = student.get_text_config()
    width = (1 if _halves(config) else 2) * (config.student.unroll if config.student.is_head else 1)
    if config.optimiser.gradient_checkpointing and config.student.is_head:
        steps = config.student.unroll  # each keeps its inputs, one is recomputed
        return tokens * text.hidden_size * width // steps * (2 * steps + ACTIVATIONS_PER_LAYER)
    if config.optimiser.gradient_checkpointing:
        return tokens * text.hidden_size * width * (2 * text.num_hidden_layers + ACTIVATIONS_PER_LAYER)
    return tokens * text.hidden_size * width * ACTIVATIONS_PER_LAYER * text.num_hidden_layers
