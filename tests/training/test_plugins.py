"""An objective of the user's own: the same run as the table's twin, one line for what is wrong, known by its source."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from specalign.errors import UserError
from specalign.losses import forward_kl, tvd
from specalign.training.cli import configs
from specalign.training.config import PLUGIN, ObjectiveConfig, TrainConfig
from specalign.training.folder import PROVENANCE
from specalign.training.plugins import plugin_from, source_sha256
from specalign.training.recipe import check, resolve
from specalign.training.session import train_all
from specalign.training.setup import build_objective

Tiny = Callable[..., TrainConfig]
GOOD = """
import torch
from specalign.losses import tvd

def half_tvd(student_logits, teacher_logits, *, labels=None, scale: float = 0.5):
    return scale * tvd(student_logits, teacher_logits)

number = 3
def mean(student_logits, teacher_logits, *, labels=None):
    return tvd(student_logits, teacher_logits).mean()
def first(student_logits, teacher_logits, *, labels=None):
    return tvd(student_logits, teacher_logits) - tvd(student_logits, teacher_logits).mean()
def no_tensor(student_logits, teacher_logits, *, labels=None):
    return 0.0
def infinite(student_logits, teacher_logits, *, labels=None):
    return tvd(student_logits, teacher_logits) / 0
def flat(student_logits, teacher_logits, *, labels=None):
    return (student_logits.argmax(-1) != teacher_logits.argmax(-1)).float()
def kink(student_logits, teacher_logits, *, labels=None):
    return (student_logits - student_logits).abs().pow(0.5).sum(-1)
def broken(student_logits, teacher_logits, *, labels=None):
    return [][0]
def no_labels(student_logits, teacher_logits):
    return tvd(student_logits, teacher_logits)
class Scaled:
    def __init__(self, scale):
        self.scale = scale
    def __call__(self, student_logits, teacher_logits, *, labels=None):
        return self.scale * tvd(student_logits, teacher_logits)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """own_losses.py in the current folder."""
    path = tmp_path / "own_losses.py"
    path.write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield path
    sys.modules.pop("own_losses", None)


def with_plugin(config: TrainConfig, name: str, **changes: Any) -> TrainConfig:
    own = replace(config.objective, plugin=name, weights={PLUGIN: 1.0}, **changes)
    return replace(config, objective=own)


def weights(config: TrainConfig) -> dict[str, Tensor]:
    return load_file(config.output / "model.safetensors")


def test_a_plugin_trains_as_its_twin_of_the_table_does(tiny: Tiny, module: Path, tmp_path: Path) -> None:
    """Half of TVD by hyper-parameter, mixed with forward KL by the weights."""
    table = {"tvd": 0.25, "forward_kl": 0.5}
    one = tiny("distillspec", output=tmp_path / "table", objective={"weights": table})
    own = {"weights": {PLUGIN: 0.5, "forward_kl": 0.5}, "plugin": "own_losses:half_tvd"}
    two = tiny("distillspec", output=tmp_path / "own", objective=own)
    three = with_plugin(
        tiny("distillspec", output=tmp_path / "other"), "own_losses:half_tvd", hyper={"scale": 2.0}
    )
    train_all([one, two, three])
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(two)[name])
    assert any(not torch.allclose(value, weights(three)[name]) for name, value in weights(one).items())


def test_a_flag_alone_takes_the_place_of_the_methods_objective() -> None:
    for method in ("gkd", "sft", "contrastive"):
        (config,) = configs(["--method", method, "--objective.plugin", "a.b:c"])
        assert config.objective.weights == {PLUGIN: 1.0}
    (config,) = configs(["--objective.plugin=a:b", "--objective.weights", "plugin=2", "jsd"])
    assert config.objective.weights == {PLUGIN: 2.0, "jsd": 1.0}


def test_a_recipe_names_it_too(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('method = "sft"\nobjective.plugin = "a:b"\nobjective.hyper = { anything = 1.0 }\n')
    assert resolve(TrainConfig(), recipe).objective.weights == {PLUGIN: 1.0}
    assert "a" not in sys.modules, "reading a recipe imports nothing"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--objective.plugin a:b --objective.weights jsd",
            r"not among objective.weights \(jsd=1\): add plugin=1",
        ),
        ("--objective.weights plugin", "say which with objective.plugin MODULE:FUNCTION"),
        ("--objective.plugin a.b", "objective.plugin must be MODULE:FUNCTION, not 'a.b'"),
        ("--objective.plugin ../a:b", "objective.plugin must be MODULE:FUNCTION"),
    ],
)
def test_mistakes_that_need_no_import(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        configs(words.split())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:f", "no module 'nowhere' in the current folder, or where Python looks"),
        ("own_losses.deep:f", "no module 'own_losses.deep'"),
        ("own_losses:half_tdv", "unknown .*function 'half_tdv'; did you mean 'half_tvd'"),
        ("own_losses:number", "own_losses:number is not callable but of type int"),
        ("own_losses:mean", r"logits \[2, 3\] take a loss for each token, .* \[2\], not one of shape \[\]"),
        ("own_losses:no_tensor", "not one of type float"),
        ("own_losses:first", "another loss when other tokens stand beside it"),
        ("own_losses:infinite", "own_losses:infinite is not finite"),
        ("own_losses:flat", "gives no gradient"),
        ("own_losses:kink", "has a gradient that is not finite"),
        ("own_losses:broken", r"IndexError: list index out of range \(own_losses.py, line 22\)"),
        ("own_losses:no_labels", "unexpected keyword argument 'labels'"),
        ("torn:f", r"importing it fails: SyntaxError: .*torn.py, line 1\)$"),
        ("lost:f", "importing it fails: No module named 'nowhere_at_all'"),
    ],
)
def test_what_is_no_objective_is_said_in_one_line(module: Path, name: str, message: str) -> None:
    (module.parent / "torn.py").write_text("def f(:\n")
    (module.parent / "lost.py").write_text("import nowhere_at_all\n")
    with pytest.raises(UserError, match=message) as caught:
        build_objective(ObjectiveConfig({PLUGIN: 1.0}, plugin=name))
    assert "\n" not in str(caught.value)


def test_a_hyper_parameter_that_it_has_not_is_named(module: Path) -> None:
    with pytest.raises(UserError, match=r"unknown hyper-parameter of plugin 'scael'; did you mean 'scale'"):
        build_objective(ObjectiveConfig({PLUGIN: 1.0}, {"scael": 1.0}, plugin="own_losses:half_tvd"))


def test_a_changed_source_is_another_run(tiny: Tiny, module: Path) -> None:
    config = with_plugin(tiny("sft"), "own_losses:half_tvd")
    train_all([config])
    written = json.loads((config.output / PROVENANCE).read_text())["identity"]
    assert written["objective's source"] == source_sha256(sys.modules["own_losses"].half_tvd)
    train_all([config])  # complete already
    module.write_text(GOOD.replace("scale * tvd(s", "2 * scale * tvd(s", 1))
    del sys.modules["own_losses"]
    with pytest.raises(UserError, match=r"the objective's source of .* changed"):
        train_all([config])
    train_all([replace(config, overwrite=True)])


def test_a_function_needs_no_module(tiny: Tiny, tmp_path: Path) -> None:
    """Also one that no import would find."""

    def own(student_logits: Tensor, teacher_logits: Tensor, *, labels: Tensor | None = None) -> Tensor:
        return forward_kl(student_logits, teacher_logits)

    plugin = plugin_from(own)
    assert "<locals>.own" in plugin.label
    one, two = tiny("distillspec", output=tmp_path / "a"), tiny("distillspec", output=tmp_path / "b")
    train_all([one])
    train_all([with_plugin(two, plugin.label)], {plugin.label: plugin})
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(two)[name])
    check(with_plugin(two, plugin.label))


def test_sources_tell_what_a_function_encloses(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(module.parent)

    def scaled(scale: float) -> Callable[..., Tensor]:
        def loss(student: Tensor, teacher: Tensor, *, labels: Tensor | None = None) -> Tensor:
            return scale * tvd(student, teacher)

        return loss

    import own_losses  # type: ignore[import-not-found]

    for make in (
        scaled,
        own_losses.Scaled,
        lambda scale: functools.partial(own_losses.half_tvd, scale=scale),
        lambda scale: functools.partial(own_losses.Scaled(3.0), scale=scale),
    ):
        assert source_sha256(make(1.0)) == source_sha256(make(1.0))
        assert source_sha256(make(1.0)) != source_sha256(make(2.0))


def test_a_function_without_source_is_known_by_its_instructions() -> None:
    code = (
        "from specalign.training.plugins import source_sha256\n"
        "def f(a, b, *, labels=None): return a - {}\n"
        "print(source_sha256(f))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code.format(n)], capture_output=True, text=True, check=True
        ).stdout
        for n in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]


def test_the_example_of_the_docs(module: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    example = text.partition("```python\n# my_losses.py\n")[2].partition("```")[0]
    (module.parent / "my_losses.py").write_text(example)
    own = ObjectiveConfig({PLUGIN: 1.0}, {"power": 0.0}, plugin="my_losses:entropy_weighted")
    student, teacher = torch.randn(2, 5, 7)
    torch.testing.assert_close(build_objective(own)(student, teacher), forward_kl(student, teacher))
    sharp = 50 * torch.eye(7)[:5]
    assert build_objective(replace(own, hyper={"power": 2.0}))(student, sharp).max() < 1e-6
