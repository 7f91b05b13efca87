"""Whatever stands in a file or on the line, a command gets a valid config, or the user one line and exit code 2."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from specalign.benchmarks import analysis_cli, cli
from specalign.benchmarks.arguments import flags
from specalign.benchmarks.cli import parse_run
from specalign.benchmarks.config import BenchConfig
from specalign.config import as_table, checked, from_table, load_config
from specalign.errors import UserError, run_cli
from specalign.text import plain
from specalign.training.cli import configs
from specalign.training.config import TrainConfig


def _parse(kind: type, words: Sequence[str]) -> Any:
    return flags("x", words, kind())


COMMANDS: dict[type, Callable[[Sequence[str]], Any]] = {
    TrainConfig: lambda words: configs(words)[0],
    BenchConfig: parse_run,
}
"""Config -> what makes one of a command line."""
for module in (cli, analysis_cli):
    for kind in vars(module).values():
        if is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == module.__name__:
            COMMANDS[kind] = partial(_parse, kind)


def leaves(config: type, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(config).items():
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from leaves(hint, f"{prefix}{name}.")
        elif not name.startswith("__"):
            yield prefix + name


FIELDS = [(kind, name) for kind in COMMANDS for name in leaves(kind)]
NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**63, 2**64, 10**30]),
    st.floats(),
    st.sampled_from([float("nan"), float("inf"), -0.0, 1e-320, 1e308]),
)
WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "nan", "inf", "1e999", "auto", "cuda:99999", "../x", "a=b", "=", "a\nb", "\x1b[2J", "\u202eabc"]
    ),
    st.sampled_from(
        ["\udcff", "a\0b", "x" * 300, "'", '"', "[/nope]", "[bold]", "--", "-", "{document}", "9" * 5000]
    ),
)
SCALARS = st.one_of(NUMBERS, WORDS, st.booleans())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=2)),
    max_leaves=5,
)


def outcome(make: Callable[[], Any]) -> Any:
    """The config; None where the user got one line, or the help."""
    made: list[Any] = []
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = run_cli("tool", lambda: made.append(make()))
        except SystemExit as stop:  # the help
            code = int(stop.code or 0)
            made.append(None)
    assert code == (0 if made else 2)
    if not made:
        (line,) = told.getvalue().splitlines()
        assert line.startswith("tool: error: ")
        assert plain(line) == line
        assert len(line) < 4100
    return made[0] if made else None


def require_valid(config: Any) -> None:
    """What a command makes of it is a config that a file can hold and that reads back as itself."""
    assert checked(config) == config
    text = tomli_w.dumps(as_table(config))
    text.encode()
    assert from_table(type(config), tomllib.loads(text), "written") == config


@given(st.sampled_from(FIELDS), st.lists(SCALARS, min_size=1, max_size=3))
@settings(max_examples=120, deadline=None)
def test_any_flag_with_any_words(place: tuple[type, str], values: list[Any]) -> None:
    kind, name = place
    words = [f"--{name.replace('_', '-')}", *map(_word, values)]
    config = outcome(lambda: COMMANDS[kind](words))
    if config is not None:
        require_valid(config)


def _word(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # an integer of thousands of digits
        return "9" * 5000


@given(st.sampled_from([place for place in FIELDS if place[0] in (TrainConfig, BenchConfig)]), VALUES)
@settings(max_examples=250, deadline=None)
def test_any_key_with_any_value(place: tuple[type, str], value: Any) -> None:
    kind, name = place
    *outer, last = name.split(".")
    table: dict[str, Any] = {last: value}
    for key in reversed(outer):
        table = {key: table}
    config = outcome(lambda: from_table(kind, table, "file.toml"))
    if config is not None:
        require_valid(config)


@given(st.binary(max_size=80))
@settings(max_examples=100, deadline=None)
def test_any_bytes_for_a_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("file") / "recipe.toml"
    path.write_bytes(content)
    outcome(lambda: load_config(TrainConfig, path))


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "arms" + ".a" * 2_000 + " = 1", "seed = " + "9" * 5000]
)
def test_files_that_are_bombs(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    assert outcome(lambda: load_config(TrainConfig, tmp_path / "recipe.toml")) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--decoding.temperatures nan", "decoding.temperatures must be a finite number, not nan"),
        ("--decoding.gammas 100000", "decoding.gammas must be at most 128, not 100000"),
        ("--threads -2", "threads must be at least 0, not -2"),
        ("--seed 18446744073709551616", "seed must be below 4.29497e+09"),
        ("--engine.arguments '", "engine.arguments No closing quotation"),
        ("--drafter a\nb=x", "'a\\nb': names are 1 to 64 letters, digits"),
        ("--decoding.rule tokn", "unknown verification rule 'tokn'; did you mean 'token'?"),
        ("--device tpu", "unknown device 'tpu'"),
    ],
)
def test_values_of_a_suite_out_of_range(words: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_run(words.split(" "))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--budget.steps -1", "budget.steps must be at least 0, not -1"),
        ("--budget.seconds -1", "budget.seconds must be at least 0, not -1.0"),
        ("--student.draft-vocabulary -5", "student.draft_vocabulary must be at least 0, not -5"),
        ("--objective.weights forwrd_kl=1", "unknown objective 'forwrd_kl'; did you mean 'forward_kl'?"),
        ("--objective.weights tvd=-1", "objective.weights.tvd must be at least 0"),
        ("--seeds 1 -1", "seeds must be at least 0, not -1"),
    ],
)
def test_values_of_a_recipe_out_of_range(words: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        configs(words.split(" "))
    assert message in str(caught.value)


def test_ranges_are_shown_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_run(["--help"])
    shown = capsys.readouterr().out
    for text in (
        "--decoding.gammas 1..128 ...",
        "--decoding.repeats 1..65536",
        "--seed 0..2^32-1",
        "--threads 0..4096",
    ):
        assert text in shown


def test_names_are_those_of_the_tables() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    from specalign.benchmarks import config as bench
    from specalign.decoding import verification
    from specalign.losses import LOSSES, hyper_parameters
    from specalign.training import recipe as training

    assert sorted(bench.RULES) == sorted(verification.RULES)
    assert {name: set(hyper.split()) for name, hyper in training.OBJECTIVES.items()} == {
        name: set(hyper_parameters(name)) for name in LOSSES
    }
    assert {str(name) for name in LOGGER_TYPE_TO_CLASS} <= set(training.TRACKERS)


EARLY = [
    ("training", "--output {tmp}/file/below", "file is not a folder"),
    ("training", "--output {tmp}/{long}", "longer than 255 bytes"),
    ("training", "check --output {tmp}/{long}", "longer than 255 bytes"),
    ("training", "--objective.weights jsd --objective.hyper betta=0.5", "did you mean 'beta'"),
    ("training", "--method sft --objective.hyper beta=0.5", "unknown hyper-parameter of cross_entropy 'beta'"),
    ("training", "--logging.trackers tensorbord", "did you mean 'tensorboard'"),
    ("training", "--optimiser.batch 1000000000000000", "optimiser.batch must be at most 65536"),
    ("training", "--student.n-layers 1000000000000000", "student.n_layers must be at most 4096"),
    ("training", "--teacher.model ./nowhere", "no such model folder: ./nowhere"),
    ("training", "check --student.model {tmp}", "is not a model folder: it has no config.json"),
    ("training", "--data nowhere.jsonl", "no such data file: nowhere.jsonl"),
    ("benchmarks", "run --target.model nowhere.gguf", "no such model file: nowhere.gguf"),
    ("benchmarks", "run --drafter a=./nowhere", "no such model folder: ./nowhere"),
    ("benchmarks", "check --data nowhere.csv", "no such data file: nowhere.csv"),
    ("benchmarks", "run --output {tmp}/file/below", "file is not a folder"),
    ("benchmarks", "check --output {tmp}/{long}", "longer than 255 bytes"),
    ("benchmarks", "run --decoding.repeats 1000000000000000", "decoding.repeats must be at most 65536"),
    (
        "benchmarks",
        "run --engine vllm --concurrency 1000000000000000",
        "engine.concurrency must be at most 65536",
    ),
]


@pytest.mark.parametrize("package", ["training", "benchmarks"])
def test_what_can_be_known_at_once_is_said_before_torch_is_imported(package: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rows = [
        (line.format(tmp=tmp_path, long="n" * 300).split(), said)
        for name, line, said in EARLY
        if name == package
    ]
    code = (
        f"import sys\nfrom specalign.errors import run_cli\nfrom specalign.{package}.cli import main\n"
        f"for words in {[words for words, _ in rows]!r}:\n    assert run_cli('x', lambda: main(words)) == 2\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    for line, (_, said) in zip(done.stderr.splitlines(), rows, strict=True):
        assert said in line


def test_every_number_of_a_config_has_a_range() -> None:
    """A field that is a bare int or float would take what no code does."""
    for kind in COMMANDS:
        for name in _bare(kind):
            raise AssertionError(f"{kind.__name__}.{name} has no range: see specalign/ranges.py")


def _bare(kind: type) -> Iterator[str]:
    for name, hint in get_type_hints(kind, include_extras=True).items():
        inner = get_type_hints(kind)[name]
        if is_dataclass(inner):
            assert isinstance(inner, type)
            yield from _bare(inner)
        elif hint in (int, float, tuple[int, ...], tuple[float, ...]):
            yield name
    assert {each.name for each in fields(kind)} <= set(get_type_hints(kind))


@pytest.mark.parametrize(
    ("name", "hyper"), [("accepted_length", {"gamma": 10**15}), ("forward_kl", {"temperature": 1e300})]
)
def test_hyper_parameters_that_no_loss_can_compute_with(name: str, hyper: dict[str, float]) -> None:
    from specalign.losses import objective

    with pytest.raises(UserError, match=f"objective {name}: "):
        objective({name: 1.0}, hyper)
