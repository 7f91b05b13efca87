"""Recipes: precedence, presets, and every shipped file."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specalign.errors import UserError
from specalign.training import teacher
from specalign.training.cli import configs
from specalign.training.config import RolloutConfig, TrainConfig
from specalign.training.recipe import PRESETS, RATES, Start, check, completed, with_prompt
from specalign.training.setup import build_objective

RECIPES = sorted((Path(__file__).parents[2] / "training").glob("*.toml"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_opens_with_its_command(path: Path) -> None:
    found = configs(["--recipe", str(path)])
    for config in found:
        build_objective(config.objective)
    first, duration, result = path.read_text().splitlines()[:3]
    assert first.startswith(f"# specalign-train --recipe training/{path.name}")
    assert duration.startswith("# Duration: ")
    assert result.startswith("# Result: ")


def test_recipes_are_there() -> None:
    assert {path.stem for path in RECIPES} >= {"sft", "gkd", "distillspec", "contrastive", "demo"}


@pytest.mark.parametrize("name", ["sft", "gkd", "distillspec", "contrastive"])
def test_the_seed_pair_is_as_specified(name: str) -> None:
    (config,) = configs(["--recipe", str(next(path for path in RECIPES if path.stem == name))])
    assert config.method == name
    assert config.student.model == "Qwen/Qwen2.5-0.5B-Instruct"
    assert config.teacher.model == "Qwen/Qwen2.5-1.5B-Instruct"
    assert config.data.source == "cnn_dailymail"
    assert config.rollout.k_max == 4
    assert config.optimiser.lr == 2e-4
    assert config.optimiser.accumulation == 16
    assert config.budget.steps == 2000
    assert config.data.max_prompt_tokens == 512
    assert config.attn == "flash_attention_2"
    if name in ("gkd", "distillspec"):
        assert config.objective.hyper == {"temperature": 1.0}


@pytest.mark.parametrize(
    ("name", "flags", "used", "told"),
    [
        ("sft", [], "flash_attention_2", "decoding and validation run by sdpa"),
        ("distillspec", [], "flash_attention_2", "decoding and validation run by sdpa"),
        ("gkd", [], "sdpa", "branches that share a pass need a mask"),
        ("contrastive", [], "sdpa", "branches that share a pass need a mask"),
        ("gkd", ["--rollout.no-packed"], "flash_attention_2", "decoding and validation run by sdpa"),
        ("sft", ["--optimiser.precision", "float32"], "sdpa", "needs half precision"),
        ("sft", ["--attn", "eager"], "eager", ""),
    ],
)
def test_the_attention_of_a_gpu_with_flash_attn(
    name: str,
    flags: list[str],
    used: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(teacher, "flash_needs", lambda device: "")
    path = next(path for path in RECIPES if path.stem == name)
    (config,) = configs(["--recipe", str(path), *flags])
    assert teacher.attention_of(config, torch.device("cuda")) == used
    assert told in capsys.readouterr().out


def test_flag_over_file_over_preset_over_default(tmp_path: Path) -> None:
    path = write(tmp_path, 'method = "distillspec"\n[rollout]\nk_max = 7\nstyle = "branches"\n')
    (config,) = configs(["--recipe", str(path), "--rollout.k-max", "9"])
    assert config.method == "distillspec"
    assert config.rollout.k_max == 9  # flag
    assert config.rollout.style == "branches"  # file, the preset says "full"
    assert config.rollout.source == "mixed"  # preset
    assert config.rollout.branches == TrainConfig().rollout.branches  # default


def test_the_method_on_the_line_chooses_the_preset(tmp_path: Path) -> None:
    path = write(tmp_path, 'method = "distillspec"\nseed = 3\n')
    (config,) = configs(["--recipe", str(path), "--method=sft"])
    assert (config.method, config.rollout.source, config.seed) == ("sft", "ground_truth", 3)
    assert config.objective.weights == {"cross_entropy": 1.0}


def test_a_method_alone_suffices() -> None:
    (config,) = configs(["--method", "gkd"])
    assert (config.teacher.model, config.data.source) == ("builtin:smollm2", "builtin:docstrings")


def test_compare_gives_each_method_its_preset_and_folder() -> None:
    words = ["--compare", "untrained", "sft", "gkd", "--output", "runs/x", "--optimiser.lr", "0.5"]
    found = configs(words)
    assert [config.method for config in found] == ["untrained", "sft", "gkd"]
    assert [config.output for config in found] == [
        Path("runs/x") / name for name in ("untrained", "sft", "gkd")
    ]
    assert [config.student.start for config in found] == ["slice", "aligned", "aligned"]
    assert {config.optimiser.lr for config in found} == {0.5}


@pytest.mark.parametrize("method", PRESETS)
def test_presets_are_valid(method: str) -> None:
    config = completed(TrainConfig(method=method))  # type: ignore[arg-type]
    check(config)
    build_objective(config.objective)


def test_hyper_parameters_become_the_kind_that_the_loss_expects() -> None:
    (config,) = configs(["--method", "contrastive", "--objective.hyper", "top_k=4", "rest=0"])
    ((_, _, hyper),) = build_objective(config.objective).terms
    assert hyper == {"top_k": 4, "rest": False}
    assert isinstance(hyper["top_k"], int)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "gdk"], "unknown method 'gdk'; did you mean 'gkd'"),
        (["--optimiser.batch", "0"], "optimiser.batch must be at least 1"),
        (["--rollout.student-fraction", "1.5"], "student_fraction must be at most 1"),
        (["--budget.steps", "0"], "no budget"),
        (["--method", "aligned", "--student.model", "x/y"], "needs a slice"),
        (["--optimizer.lr", "1"], "did you mean --optimiser.lr"),
        (["--recipe", "nowhere.toml"], "no such file: nowhere.toml"),
    ],
)
def test_mistakes_on_the_line_are_named(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("'", ".")):
        configs(words)


def test_an_unknown_key_of_a_recipe_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "[optimiser]\nlearning_rate = 1.0\n")
    with pytest.raises(UserError, match=r"unknown key 'optimiser.learning_rate'"):
        configs(["--recipe", str(path)])


ARMS = """
seeds = [0, 1]
[optimiser]
lr = 5e-5
[objective.hyper]
temperature = 2.0
[arms.gkd]
rollout.k_max = 2
[arms.jsd]
method = "seqkd"
objective.weights = { jsd = 1.0 }
objective.hyper = { beta = 0.5 }
"""


def test_arms_vary_a_recipe_with_each_seed(tmp_path: Path) -> None:
    words = ["--recipe", str(write(tmp_path, ARMS)), "--output", "runs/x", "--optimiser.batch", "3"]
    found = configs(words)
    assert [str(config.output) for config in found] == [
        f"runs/x/{arm}/seed-{seed}" for arm in ("gkd", "jsd") for seed in (0, 1)
    ]
    assert [config.seed for config in found] == [0, 1, 0, 1]
    gkd, _, jsd, _ = found
    assert (gkd.method, gkd.rollout.source, gkd.rollout.k_max) == ("gkd", "student", 2)  # named like its preset
    assert (jsd.method, jsd.rollout.source) == ("seqkd", "teacher")
    assert jsd.objective.weights == {"jsd": 1.0}  # the arm's, not the preset's with it
    assert gkd.objective.hyper == {"temperature": 2.0}
    assert jsd.objective.hyper == {"beta": 0.5}
    assert all(config.optimiser.lr == 5e-5 and config.optimiser.batch == 3 for config in found)
    assert not any(config.arms or config.seeds for config in found)
    (only,) = configs([*words, "--compare", "jsd", "--seeds", "7"])
    assert (str(only.output), only.seed) == ("runs/x/jsd/seed-7", 7)


def test_arms_are_checked_like_recipes(tmp_path: Path) -> None:
    recipe = write(tmp_path, ARMS)
    with pytest.raises(UserError, match=r"unknown method or arm 'jds'; did you mean 'jsd'\?"):
        configs(["--recipe", str(recipe), "--compare", "jds"])
    with pytest.raises(
        UserError, match=r"\[arms.a\]: unknown key 'rollout.kmax'; did you mean 'k_max'|rollout.k_max"
    ):
        configs(["--recipe", str(write(tmp_path, "[arms.a]\nrollout.kmax = 3\n"))])


def test_arms_share_what_is_loaded_once(tmp_path: Path) -> None:
    for name, table in (
        ("data", "data.n_train = 5"),
        ("teacher", 'teacher.dtype = "float64"'),
        ("rollout.teacher_temperature", "rollout.teacher_temperature = 0.5"),
    ):
        recipe = write(tmp_path, f"[arms.gkd]\n[arms.sft]\n{table}\n")
        with pytest.raises(UserError, match=rf"sft differs from \S*gkd in {name}, .* a command of its own"):
            configs(["--recipe", str(recipe)])
    assert (
        len(configs(["--recipe", str(write(tmp_path, "[arms.gkd]\n[arms.sft]\nstudent.n_layers = 3\n"))])) == 2
    )


def test_a_place_for_states_needs_states() -> None:
    with pytest.raises(UserError, match=r"teacher\.reuse_states keeps them: set that too"):
        configs(["--teacher.reuse-on-disk"])


@pytest.mark.parametrize("method", PRESETS)
def test_a_config_from_python_is_the_one_of_the_command_line(method: str) -> None:
    """Whatever was a config's method before; and what is set explicitly stays, be it a default of another method."""
    (expected,) = configs(["--method", method])
    made = with_prompt(completed(TrainConfig(method=method)))  # type: ignore[arg-type]
    assert replace(made, recipe=None) == expected
    other = replace(TrainConfig(method="gkd"), method=method)  # type: ignore[arg-type]
    assert with_prompt(completed(other)) == expected
    assert completed(expected) == expected
    if method in ("sft", "seqkd"):
        explicit = replace(TrainConfig(method=method), rollout=RolloutConfig(source="student"))  # type: ignore[arg-type]
        assert completed(explicit).rollout.source == "student"
        assert completed(explicit).objective.weights == {"cross_entropy": 1.0}


def test_an_unknown_method_from_python_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown method 'gdk'; did you mean 'gkd'\?"):
        completed(TrainConfig(method="gdk"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ([], "aligned slice"),
        (["--student.draft-vocabulary", "4096"], "aligned slice"),
        (["--student.start", "slice"], "bare slice"),
        (["--student.model", "x/y"], "trained model"),
    ],
)
def test_the_rate_is_the_starts_unless_one_is_given(words: list[str], start: Start) -> None:
    (config,) = configs(words)
    assert config.optimiser.lr == RATES[start]
    (config,) = configs([*words, "--optimiser.lr", "0.5"])
    assert config.optimiser.lr == 0.5
