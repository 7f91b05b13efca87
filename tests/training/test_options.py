"""No option of a recipe is without effect: each changes what is drawn, computed, kept or logged.

What two steps do is compared number by number, and operation by operation with the shapes that it works on: an option
that changes no number, as it should not, still changes which operations give it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from specalign.training import folder, loop, setup
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials
from specalign.training.recipe import overlay
from specalign.training.session import train_all

Tiny = Callable[..., TrainConfig]
Tables = dict[str, Any]
TESTS = Path(__file__).parents[1]

HEAD: Tables = {"student": {"kind": "head", "start": "random"}}
STEPS: dict[str, tuple[str, Tables, Any]] = {
    "teacher.dtype": ("distillspec", {}, "float64"),
    "teacher.reuse_states": ("distillspec", {"rollout": {"source": "teacher"}, "budget": {"steps": 9}}, True),
    "student.layers": ("sft", {}, (0, 1, 3)),
    "student.n_layers": ("sft", {}, 3),
    "student.pick": ("sft", {"student": {"n_layers": 3}}, "even"),
    "student.start": ("sft", {}, "slice"),
    "student.align_tokens": ("sft", {}, 30),
    "student.ridge": ("sft", {}, 0.5),
    "student.draft_vocabulary": ("distillspec", {}, 20),
    "student.parallel": ("seqkd", {}, 3),
    "student.parallel_keep": ("seqkd", {"student": {"parallel": 3, "parallel_floor": 0.0}}, 0.3),
    "student.parallel_floor": ("seqkd", {"student": {"parallel": 3, "parallel_keep": 0.1}}, 1.0),
    "student.reads": ("seqkd", HEAD, (0, 1, 2)),
    "student.unroll": ("seqkd", HEAD, 3),
    "student.decay": ("seqkd", HEAD, 0.5),
    "data.document": ("seqkd", {}, "reference"),
    "data.reference": ("sft", {}, "document"),
    "data.prompt": ("seqkd", {}, "w5 {document}"),
    "data.max_prompt_tokens": ("seqkd", {}, 6),
    "data.max_response_tokens": ("sft", {}, 3),
    "data.n_train": ("sft", {}, 3),
    "data.n_validation": ("sft", {}, 2),
    "rollout.source": ("distillspec", {}, "teacher"),
    "rollout.student_fraction": ("distillspec", {}, 1.0),
    "rollout.style": ("distillspec", {}, "branches"),
    "rollout.k_max": ("gkd", {}, 1),
    "rollout.branches": ("gkd", {}, 1),
    "rollout.prompts": ("seqkd", {}, True),
    "rollout.trunk": ("gkd", {}, "ground_truth"),
    "rollout.temperature": ("gkd", {}, 0.0),
    "rollout.top_p": ("gkd", {}, 0.2),
    "rollout.teacher_temperature": ("seqkd", {}, 1.0),
    "rollout.packed": ("gkd", {}, False),
    "rollout.batch": ("distillspec", {"rollout": {"student_fraction": 1.0}}, 1),
    "objective.weights": ("distillspec", {}, {"jsd": 1.0}),
    "objective.hyper": ("distillspec", {}, {"temperature": 2.0}),
    "objective.teacher_temperature": ("distillspec", {}, 0.5),
    "objective.keep": ("distillspec", {}, 0.5),
    "objective.reference": ("distillspec", {"objective": {"keep": 0.5}}, "the teacher's folder"),
    "objective.chunk_tokens": ("distillspec", {}, 2),
    "optimiser.lr": ("sft", {}, 1e-4),
    "optimiser.warmup_steps": ("sft", {}, 1),
    "optimiser.final_lr": ("sft", {}, 0.9),
    "optimiser.weight_decay": ("sft", {}, 0.9),
    "optimiser.beta1": ("sft", {}, 0.1),
    "optimiser.beta2": ("sft", {}, 0.1),
    "optimiser.max_grad_norm": ("sft", {}, 1e-9),
    "optimiser.batch": ("sft", {}, 1),
    "optimiser.accumulation": ("sft", {}, 1),
    "optimiser.gradient_checkpointing": ("sft", {}, True),
    "optimiser.precision": ("sft", {}, "bfloat16"),
    "budget.steps": ("sft", {}, 2),
    "seed": ("sft", {}, 7),
    "attn": ("sft", {}, "eager"),
}
"""Option -> method, what else differs from the tiny recipe, another value."""

LOGS: dict[str, tuple[str, Tables, Any]] = {
    "logging.every": ("sft", {}, 3),
    "logging.validate_every": ("sft", {}, 3),
    "logging.probe_prompts": ("sft", {}, 1),
    "logging.probe_gamma": ("sft", {}, 1),
    "logging.checkpoint_every": ("sft", {}, 3),
    "logging.keep_checkpoints": ("sft", {"logging": {"checkpoint_every": 1}}, 1),
    "budget.tokens": ("sft", {}, 1),
    "budget.seconds": ("sft", {}, 1e-9),
    "result.keep": ("sft", {"optimiser": {"lr": 0.3, "warmup_steps": 0}}, "best"),
    "output": ("sft", {}, "elsewhere"),
}
"""The same for what a whole run leaves."""

ELSEWHERE = {
    "recipe": "training/test_recipes.py::test_flag_over_file_over_preset_over_default",
    "method": "training/test_recipes.py::test_a_config_from_python_is_the_one_of_the_command_line",
    "compare": "training/test_recipes.py::test_compare_gives_each_method_its_preset_and_folder",
    "sweep": "training/test_sweep.py::test_a_sweep_trains_every_combination_and_ranks_them",
    "arms": "training/test_recipes.py::test_arms_vary_a_recipe_with_each_seed",
    "seeds": "training/test_recipes.py::test_arms_vary_a_recipe_with_each_seed",
    "overwrite": "training/test_loop.py::test_a_complete_run_is_left_alone",
    "device": "training/test_cli.py::test_a_device_that_is_not_there",
    "teacher.model": "training/test_identity.py::test_a_change_is_refused",
    "teacher.quantization": "training/test_quantised.py::test_a_quantised_teacher_cannot_be_sliced",
    "teacher.reuse_gib": "training/test_reuse.py::test_the_recipe_says_how_much_is_kept",
    "teacher.offload": "training/test_offload.py::test_the_memory_is_given_back",
    "teacher.reuse_on_disk": "training/test_reuse.py::test_states_on_disk_serve_a_later_command_bit_by_bit",
    "student.kind": "training/test_heads.py::test_a_method_trains_a_head",
    "student.model": "training/test_ending.py::test_the_best_validated_weights_are_written",
    "data.source": "training/test_identity.py::test_a_change_is_refused",
    "data.n_test": "training/test_held_out.py::test_the_written_student_is_scored_on_each_test_prompt",
    "data.skip_bad_rows": "data/test_data.py::test_bad_rows_are_left_out_only_when_asked_and_are_listed_then_too",
    "objective.plugin": "training/test_plugins.py::test_a_plugin_trains_as_its_twin_of_the_table_does",
    "optimiser.sharded": "training/test_distributed.py::test_the_optimiser_is_sharded_if_asked_for_among_several",
    "optimiser.compile": "training/test_loop.py::test_compiling_the_student_changes_numbers_by_rounding_alone",
    "logging.trackers": "training/test_tracking.py::test_tensorboard_shows_the_lines_of_the_log",
    "result.metric": "training/test_options.py::test_the_metric_says_which_weights_are_the_best",
    "data.messages": "training/test_conversations.py::test_each_option_says_what_is_trained_on",
    "data.turns": "training/test_conversations.py::test_each_option_says_what_is_trained_on",
    "data.template_arguments": "training/test_conversations.py::test_each_option_says_what_is_trained_on",
    "student.n_encoder_layers": "training/test_options.py::test_an_encoder_is_sliced_where_asked_for",
    "data.template": "training/test_options.py::test_a_template_is_used_unless_told_otherwise",
    "teacher.trust_remote_code": "training/test_options.py::test_remote_code_runs_only_where_it_is_trusted",
    "engine.name": "serving/test_teacher.py::",
    "engine.python": "serving/test_teacher.py::",
    "engine.arguments": "serving/test_teacher.py::",
    "engine.endpoint": "serving/test_teacher.py::",
}
"""Option -> the test that shows what it does."""


class Operations(TorchDispatchMode):
    """Counts operations by name and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(each.shape) for each in args if isinstance(each, torch.Tensor)]
        self.seen[f"{function} {shapes}"] += 1
        return function(*args, **(kwargs or {}))


def names(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of all options."""
    found = []
    hints = get_type_hints(config)
    for field in fields(config):
        inner = hints[field.name]
        found += names(inner, f"{prefix}{field.name}.") if is_dataclass(inner) else [prefix + field.name]
    return found


def with_option(config: TrainConfig, option: str, value: Any) -> TrainConfig:
    table: Any = value
    for name in reversed(option.split(".")):
        table = {name: table}
    return overlay(config, table, None)


def after_two_steps(config: TrainConfig) -> tuple[list[Any], Counter[str]]:
    """Numbers, and operations by shape, of two steps and the validations around them."""
    run = setup.start_run(config, load_materials(config))
    numbers: list[Any] = [run.validation.score(run.pair)]
    with Operations() as operations:
        for _ in range(2):
            report = loop.step(run)
            numbers.append((report.loss, report.n_tokens, report.k, report.grad_norm, report.lr))
    numbers.append(run.validation.score(run.pair))
    return numbers, operations.seen


def what_is_left(config: TrainConfig) -> list[Any]:
    """Of a whole run: its log but for the clock, its files, the step that was kept."""
    train_all([config])
    log = [
        {key: value for key, value in line.items() if not key.endswith("_s")}
        for line in folder.read_log(config.output)
    ]
    files = sorted(
        path.relative_to(config.output.parent).as_posix() for path in config.output.rglob("*.safetensors")
    )
    return [log, files, folder.read_provenance(config.output)["kept_step"]]


@pytest.fixture(scope="module")
def without() -> dict[tuple[str, str], Any]:
    """What the tiny recipes' own steps do, each found once."""
    return {}


def test_every_option_is_here() -> None:
    tables = [*STEPS, *LOGS, *ELSEWHERE]
    assert sorted(tables) == sorted(names(TrainConfig))
    for test in ELSEWHERE.values():
        path, _, name = test.partition("::")
        defined = [
            node.name
            for node in ast.parse((TESTS / path).read_text()).body
            if isinstance(node, ast.FunctionDef)
        ]
        assert name in defined or not name, test


@pytest.mark.parametrize("option", STEPS)
def test_an_option_changes_what_a_step_does(
    tiny: Tiny, teacher_folder: Path, without: dict[tuple[str, str], Any], option: str
) -> None:
    method, also, value = STEPS[option]
    base = tiny(method, **also)
    other = with_option(base, option, str(teacher_folder) if option == "objective.reference" else value)
    assert other != base
    known = (method, repr(also))
    if known not in without:
        without[known] = after_two_steps(base)
    assert after_two_steps(other) != without[known]


def test_steps_without_a_change_are_the_same(tiny: Tiny) -> None:
    """Otherwise the test above would show nothing."""
    for method in ("sft", "gkd", "distillspec"):
        assert after_two_steps(tiny(method)) == after_two_steps(tiny(method))


@pytest.mark.parametrize("option", LOGS)
def test_an_option_changes_what_a_run_leaves(tiny: Tiny, tmp_path: Path, option: str) -> None:
    method, also, value = LOGS[option]
    base = tiny(method, **also)
    left = what_is_left(base)
    base.output.rename(tmp_path / "before")
    other = with_option(base, option, tmp_path / value if option == "output" else value)
    assert what_is_left(other) != left


def test_runs_without_a_change_leave_the_same(tiny: Tiny, tmp_path: Path) -> None:
    left = what_is_left(tiny("sft"))
    (tmp_path / "run").rename(tmp_path / "before")
    assert what_is_left(tiny("sft")) == left


@pytest.mark.parametrize("metric", ["alpha", "agreement", "tau", "probe_tau"])
def test_the_metric_says_which_weights_are_the_best(tiny: Tiny, metric: str) -> None:
    log = {"validate_every": 1, "probe_prompts": 2}
    config = tiny("gkd", optimiser={"lr": 0.1}, logging=log, result={"keep": "best", "metric": metric})
    train_all([config])
    found = {
        line["step"]: line[metric] for line in folder.read_log(config.output) if line["kind"] == "validation"
    }
    facts = folder.read_provenance(config.output)
    assert facts["kept_step"] == max(found, key=lambda step: found[step])
    assert facts["validation"]["metric"] == metric


def test_a_template_is_used_unless_told_otherwise(tiny: Tiny, teacher_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    chatty = tmp_path / "chatty"
    AutoModelForCausalLM.from_pretrained(teacher_folder).save_pretrained(chatty)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.chat_template = "w9 {{ messages[0]['content'] }} w9 {{ messages[1]['content'] if messages[1:] }}"
    tokenizer.save_pretrained(chatty)
    found = {
        template: load_materials(
            tiny("sft", teacher={"model": str(chatty)}, data={"template": template, "max_prompt_tokens": 12})
        ).train[0]
        for template in ("auto", "chat", "plain")
    }
    assert found["auto"].input_ids == found["chat"].input_ids
    assert found["auto"].input_ids != found["plain"].input_ids


def test_remote_code_runs_only_where_it_is_trusted(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from specalign.training import teacher

    seen: list[bool] = []
    real = teacher.load_model

    def watched(*args: Any, trust_remote_code: bool = False, **rest: Any) -> Any:
        seen.append(trust_remote_code)
        return real(*args, trust_remote_code=trust_remote_code, **rest)

    monkeypatch.setattr(teacher, "load_model", watched)
    for trusted in (False, True):
        load_materials(tiny("sft", teacher={"trust_remote_code": trusted}))
    assert seen == [False, True]


def test_an_encoder_is_sliced_where_asked_for(tiny: Tiny, tmp_path: Path, teacher_folder: Path) -> None:
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 3,
        "num_heads": 2,
    }
    T5ForConditionalGeneration(T5Config(**sizes | {"decoder_start_token_id": 0})).save_pretrained(
        tmp_path / "t5"
    )
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "t5")
    config = tiny("sft", teacher={"model": str(tmp_path / "t5")}, student={"n_layers": 2, "start": "slice"})
    materials = load_materials(config)
    kept = [
        len(materials.student(with_option(config, "student.n_encoder_layers", n).student).get_encoder().block)
        for n in (0, 2)
    ]
    assert kept == [3, 2]
