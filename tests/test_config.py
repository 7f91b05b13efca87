"""Configuration: flag over file over default, and no key that is silently ignored."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from specalign.config import (
    STRICT,
    NamedValues,
    Weights,
    as_table,
    cache_dir,
    load_config,
    parse_flags,
    write_config,
)
from specalign.errors import UserError


@dataclass(frozen=True)
class Optimiser:
    lr: float = 1e-3
    """Peak learning rate, per step."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Config:
    method: Literal["gkd", "sft"] = "gkd"
    """Training method."""
    layers: tuple[int, ...] = (0, 1)
    """Layers to keep."""
    output: Path | None = None
    """Output folder."""
    overwrite: bool = False
    """Replace an existing run."""
    optimiser: Optimiser = field(default_factory=Optimiser)
    objective: Weights = field(default_factory=dict)
    """Weighted sum of objectives."""
    __pydantic_config__ = STRICT


def flags(*words: str, default: Config | None = None) -> Config:
    return parse_flags(Config, words, default=default or Config(), program="tool", description="A tool.")


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return load_config(Config, path)


@dataclass(frozen=True)
class Template:
    """A config with a table of values of any kind."""

    arguments: NamedValues = field(default_factory=dict)
    """What a template is given."""


def test_flag_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    from_file = load(tmp_path, 'method = "sft"\nlayers = [3, 4]\n[optimiser]\nlr = 0.5\n')
    assert from_file == Config(method="sft", layers=(3, 4), optimiser=Optimiser(lr=0.5))
    both = flags("--layers", "7", "--optimiser.lr", "2", default=from_file)
    assert both == Config(method="sft", layers=(7,), optimiser=Optimiser(lr=2.0))


def test_weights_read_alike_from_file_and_line(tmp_path: Path) -> None:
    from_file = load(tmp_path, "objective = {forward_kl = 0.5, rank_order = 1}")
    assert flags("--objective", "forward_kl=0.5", "rank_order") == from_file


def test_values_for_a_template_read_alike_from_file_and_line(tmp_path: Path) -> None:
    words = ["thinking=false", "n=3", "x=1.5", "who=you", 'names=["a", "b"]', "on", "what=null"]
    given = parse_flags(
        Template, ["--arguments", *words], default=Template(), program="t", description="a test"
    )
    assert given.arguments == {
        "thinking": False,
        "n": 3,
        "x": 1.5,
        "who": "you",
        "names": ["a", "b"],
        "on": True,
        "what": "null",
    }
    write_config(tmp_path / "a.toml", given)
    assert load_config(Template, tmp_path / "a.toml") == given
    for bad in ("1=2", "a b=1"):
        with pytest.raises(UserError, match="must have names as keys"):
            parse_flags(Template, ["--arguments", bad], default=Template(), program="t", description="a test")
    (tmp_path / "b.toml").write_text("arguments = {a = [[1]]}")
    with pytest.raises(UserError, match="must have texts, numbers"):
        load_config(Template, tmp_path / "b.toml")


def test_written_config_reads_back(tmp_path: Path) -> None:
    config = flags("--output", "runs/a", "--overwrite", "--objective", "tvd=0.25")
    write_config(tmp_path / "resolved.toml", config)
    assert load_config(Config, tmp_path / "resolved.toml") == config


def test_empty_optional_fields_are_left_out() -> None:
    assert "output" not in as_table(Config())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer = [1]", "unknown key 'layer'; did you mean 'layers'"),
        ("[optimiser]\nlrr = 1", "unknown key 'optimiser.lrr'; did you mean 'optimiser.lr'"),
        ('method = "gkx"', "method: unknown value 'gkx'; did you mean 'gkd'?"),
        ("layers = ['a']", "layers = 'a'"),
        ("method = ", "not valid TOML"),
    ],
)
def test_bad_file_names_the_file_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "recipe.toml" in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(UserError, match=r"no such file: nowhere\.toml"):
        load_config(Config, Path("nowhere.toml"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimiser.lrr", "3"), "unknown argument '--optimiser.lrr'; did you mean --optimiser.lr?"),
        (("--overwrit",), "did you mean --overwrite?"),
        (("--method", "gkx"), "'gkx'"),
        (("--optimiser.lr", "fast"), "--optimiser.lr"),
        (("--objective", "tvd=much"), "--objective"),
    ],
)
def test_bad_flag_names_itself_in_one_line(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        flags(*words)
    assert message in str(caught.value)
    assert not set(str(caught.value)) & set("│╭╰\n")


def test_help_shows_every_field_with_its_doc(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        flags("--help")
    assert not stopped.value.code
    shown = capsys.readouterr().out
    for word in ("A tool.", "--optimiser.lr", "Peak learning rate, per step.", "0.001", "--overwrite"):
        assert word in shown


def test_cache_folder_is_the_users_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("SPECALIGN_CACHE")
    assert cache_dir().name == "specalign"
