"""What a training run is checked for before a weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

from specalign.data.preflight import describe_prompts, describe_rows, describe_splits, first_rows, licence
from specalign.data.turns import end_of_turn
from specalign.errors import UserError
from specalign.models import preflight as models
from specalign.models.eagle import empty_head, read_head_config
from specalign.models.eagle_start import head_config
from specalign.models.head_fit import origin_of, require_head_fits
from specalign.models.load import (
    check_weights,
    require_bitsandbytes,
    resolve_device,
)
from specalign.models.mask_token import masks_of, spare_id
from specalign.models.properties import decoder_layers, eos_ids, tower_layers
from specalign.models.slicing import choose_layers, require_layers
from specalign.models.vocabulary import n_ids
from specalign.preflight import Caution, Check, Finding, examine
from specalign.training.config import PLUGIN, UNTRAINED, TrainConfig, require_sliceable
from specalign.training.distributed import local_device
from specalign.training.plan import Plan, make_plan
from specalign.training.plugins import NONE, Plugins
from specalign.training.prompts import columns, encoded
from specalign.training.rollouts import needs_references
from specalign.training.starts import require_own_shape
from specalign.training.writers import WRITERS

Outlined = Callable[[], models.Outline]
ASKS = "data.max_prompt_tokens", "data.max_response_tokens"


def findings(configs: Sequence[TrainConfig], *, data: bool, plugins: Plugins = NONE) -> list[Finding]:
    """Check the runs of one command: they share models and data and differ in their methods.

    ``data`` looks at a few rows too; a run does not need that, since it reads all of them first.
    """
    config = configs[0]
    teacher = cache(lambda: _outline(config, config.teacher.model))
    checks: list[Check] = [
        ("device", lambda: str(resolve_device(local_device(config.device)))),
        ("teacher", lambda: models.describe(teacher())),
        ("teacher's weights", lambda: _weights(config, config.teacher.model)),
        *(check for each in _distinct_students(configs) for check in _student_checks(each, teacher)),
        ("vocabulary", lambda: models.check_width(teacher())),
        (
            "end of text",
            lambda: models.check_end(teacher(), end_of_turn(teacher().tokenizer, config.data.template)),
        ),
        ("context", lambda: models.check_context(teacher(), "teacher", _needed(config), ASKS)),
        ("attention", lambda: models.check_attention(teacher(), config.attn, resolve_device(config.device))),
    ]
    checks += [("draft vocabulary", partial(_trimmed, each, teacher)) for each in _distinct_students(configs)]
    checks += [("drafts", partial(_drafts, each, teacher)) for each in _distinct_students(configs)]
    if check := WRITERS[config.engine.name].check:
        checks.append(("responses' engine", lambda: check(config, teacher())))
    for each in configs:
        checks += [
            (f"method {each.method}", partial(_method, each, plugins)),
            (f"memory, {each.method}", partial(_memory, each)),
        ]
    found = examine([*checks, *(_data_checks(configs, teacher) if data else [])])
    return list(dict.fromkeys(found))  # seeds of one method come to the same


def _outline(config: TrainConfig, name: str) -> models.Outline:
    return models.outline(name, trust_remote_code=config.teacher.trust_remote_code)


def _weights(config: TrainConfig, name: str) -> str:
    return check_weights(name, trust_remote_code=config.teacher.trust_remote_code)


def _distinct_students(configs: Sequence[TrainConfig]) -> list[TrainConfig]:
    return list({config.student: config for config in reversed(configs)}.values())[::-1]


def _student_checks(config: TrainConfig, teacher: Outlined) -> list[Check]:
    name = config.student.model
    if config.student.is_head:
        return [("student", lambda: _head(config, teacher()))]
    if not name:
        return [("student", lambda: _slice(config, teacher()))]
    student = cache(lambda: _outline(config, name))
    return [
        ("student", lambda: models.describe(student())),
        ("student's weights", lambda: _weights(config, name)),
        ("same kind", lambda: models.check_same_kind(student(), teacher())),
        ("same token ids", lambda: models.check_same_ids(student(), teacher())),
        ("student's vocabulary", lambda: models.check_width(student())),
        ("served elsewhere", lambda: models.check_served(student(), teacher())),
        ("padding", lambda: models.check_padding(student(), teacher())),
        ("chat template", lambda: models.check_same_template(student(), teacher())),
        ("student's context", lambda: models.check_context(student(), "student", _needed(config), ASKS)),
        (
            "student's attention",
            lambda: models.check_attention(student(), config.attn, resolve_device(config.device)),
        ),
    ]


def _head(config: TrainConfig, teacher: models.Outline) -> str:
    name, vocabulary = config.student.model, config.student.draft_vocabulary
    require_sliceable(config)
    found = head_config(teacher.model.config, config.student.reads, vocabulary)
    said = f"a head, {config.student.start}"
    if name:
        found, said = read_head_config(name), f"head {name}"
        head = empty_head(name)
        require_head_fits(head, teacher.model, origin_of(name))
        require_own_shape(config.student, head)
    n_layers = teacher.model.config.get_text_config().num_hidden_layers
    return f"{said}, on the states of layers {', '.join(map(str, found.reads))} of {n_layers}"


def _slice(config: TrainConfig, teacher: models.Outline) -> str:
    student, n_layers = config.student, len(decoder_layers(teacher.model))
    require_sliceable(config)
    if student.n_encoder_layers:
        if teacher.kind != "encoder-decoder":
            raise UserError(
                f"student.n_encoder_layers = {student.n_encoder_layers}, but the teacher has no encoder"
            )
        choose_layers(len(tower_layers(teacher.model, "encoder")), student.n_encoder_layers)
    probed = student.pick == "influence" and not student.layers
    layers = student.layers or choose_layers(
        n_layers, student.n_layers, "even" if student.pick == "even" else "ends"
    )
    require_layers(layers, n_layers)
    names = f"{len(layers)} layers, chosen by a probe," if probed else f"layers {', '.join(map(str, layers))}"
    return f"{names} of the teacher's {n_layers}, {student.start}"


def _trimmed(config: TrainConfig, teacher: Outlined) -> str | Caution:
    """Special tokens and ends are kept in any case; what else there is room for is the drafter's vocabulary."""
    size = config.student.draft_vocabulary
    if not size:
        return "all ids"
    width, kept = n_ids(teacher().tokenizer), {*eos_ids(teacher().model), *teacher().tokenizer.all_special_ids}
    if size <= len(kept):
        raise UserError(
            f"student.draft_vocabulary = {size} leaves no room for text beside {len(kept)} special tokens; "
            f"choose {len(kept) + 1} to {width - 1}, or 0 for all"
        )
    if size >= width:
        return Caution(f"student.draft_vocabulary = {size} trims nothing: the tokenizer has {width} ids")
    return f"{size} of {width} ids"


def _drafts(config: TrainConfig, teacher: Outlined) -> str | Caution:
    """How many tokens a call will draft, and the mask token of a parallel drafter."""
    most = config.student.parallel
    if not config.student.drafts_in_parallel:
        return "one token a call"
    if teacher().kind == "encoder-decoder":
        raise UserError(f"student.parallel = {most} needs a decoder-only student")
    student = _outline(config, config.student.model) if config.student.model else teacher()
    masks, n_rows = masks_of(student.model.config), student.model.config.get_text_config().vocab_size
    token = masks.token if masks else spare_id(teacher().tokenizer, n_rows)
    if token is None:
        return Caution(
            f"up to {most} tokens in one call; its mask token is a row behind the {n_rows:,} of its embedding, since "
            "the tokenizer uses them all, and engines refuse a drafter that is wider than the target"
        )
    name = teacher().tokenizer.convert_ids_to_tokens(token)
    return f"up to {most} tokens in one call; mask token: id {token}" + (f", {name}" if name else "")


def _needed(config: TrainConfig) -> tuple[int, int]:
    return config.data.max_prompt_tokens, config.data.max_response_tokens


def _method(config: TrainConfig, plugins: Plugins) -> str:
    from specalign.training.setup import build_objective

    if config.method in UNTRAINED:
        return "takes no step"
    build_objective(config.objective, plugins)
    names = {PLUGIN: config.objective.plugin}
    weights = " + ".join(
        f"{weight:g} {names.get(name, name)}" for name, weight in config.objective.weights.items()
    )
    rollout = config.rollout
    if config.student.is_head and rollout.student_share:
        return f"{weights} on given responses, and drafts of its own off {rollout.student_share:.0%} of them"
    return f"{weights} on responses by: {(rollout.source or '').replace('_', ' ')}"


def _memory(config: TrainConfig) -> str | Caution:
    """Weights, gradients and optimiser states must fit; activations are an estimate."""
    require_bitsandbytes(config.teacher.quantization)
    plan, device = make_plan(config), resolve_device(config.device)
    memory = models.device_memory_bytes(device)
    found = f"about {_gib(plan.total)} of {_gib(memory)} on {device}"
    if _fixed(plan) > memory:
        raise UserError(
            f"{found}: weights, gradients and optimiser states alone take {_gib(_fixed(plan))}; choose a smaller "
            "student (student.n_layers), teacher.quantization = 4bit, or another device"
        )
    if plan.total > memory:
        return Caution(f"{found}; lower optimiser.batch, or set optimiser.gradient_checkpointing")
    return found


def _fixed(plan: Plan) -> int:
    return plan.weights + plan.gradients + plan.optimiser


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"


def _data_checks(configs: Sequence[TrainConfig], teacher: Outlined) -> list[Check]:
    data = configs[0].data
    names = columns(data)
    references = any(each.method not in UNTRAINED and needs_references(each.rollout) for each in configs)
    train = cache(lambda: first_rows(data.source, "train", names, skip_bad_rows=data.skip_bad_rows))
    validation = cache(lambda: first_rows(data.source, "validation", names, skip_bad_rows=data.skip_bad_rows))

    def prompts() -> str | Caution:
        tokenizer = teacher().tokenizer
        found = encoded(data, train().examples, tokenizer, keep_end=teacher().kind == "encoder-decoder")
        return describe_prompts(found, tokenizer, data.template, keep_end=teacher().kind == "encoder-decoder")

    return [
        ("training rows", lambda: describe_rows(train(), references=references)),
        ("validation rows", lambda: describe_rows(validation(), references=False)),
        ("splits", lambda: describe_splits(data.source)),
        ("prompts", prompts),
        ("data's licence", lambda: licence(data.source)),
    ]
