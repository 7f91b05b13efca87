"""No option of a benchmark is without effect: each changes what is read, loaded, decoded or started.

Where an option acts on decoding, outputs are compared and never its echo in the records: those are labelled with what
was asked for. Options that also change a generation's seed are tried without sampling.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specalign.benchmarks import cli, run_folder, runner, served, suite
from specalign.benchmarks.adaptive import with_costs
from specalign.benchmarks.cells import cells
from specalign.benchmarks.config import BenchConfig, DataConfig, DecodingConfig, TargetConfig, check
from specalign.benchmarks.copied import Copied, read_corpus
from specalign.decoding import ModelDrafter
from specalign.errors import UserError
from specalign.models.load import load_tokenizer
from tests.conftest import WORDS

TESTS = Path(__file__).parents[1]
Options = dict[str, Any]


class Enough(Exception):
    """What is asked of a run has been seen."""


def prompts(config: BenchConfig) -> object:
    """The prompts of a run, or why there are none."""
    try:
        return suite.load_prompts(config, load_tokenizer(config.target.model))
    except UserError as error:
        return str(error)


def turns(config: BenchConfig) -> object:
    """The turns of a run's prompts."""
    found = suite.load_prompts(config, load_tokenizer(config.target.model))
    return [(prompt.input_ids, prompt.later) for prompt in found]


def loaded(config: BenchConfig) -> object:
    """The methods of a run, and the models behind them as they will step."""
    found = with_costs(suite.load_suite(config), config)
    models = [drafter.model for drafter in found.drafters.values() if isinstance(drafter, ModelDrafter)]
    models.append(found.target.model)
    kinds = [(model.dtype, model.config._attn_implementation) for model in models]
    return list(found.drafters), kinds, found.target.runtime, suite.fingerprints(found)


def placed(config: BenchConfig) -> object:
    """Where the models are, or why they cannot be there."""
    try:
        return str(suite.load_suite(config).target.device)
    except UserError as error:
        return str(error)


def asked(config: BenchConfig) -> object:
    """How the target is asked for."""
    seen: list[Options] = []

    def watched(*_: object, **options: Any) -> None:
        seen.append(options)
        raise Enough

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "load_model", watched)
        with pytest.raises(Enough):
            suite.load_suite(config)
    return seen


def decoded(config: BenchConfig) -> object:
    """The outputs of all generations and how their drafts fared, in no order."""
    run = suite.load_suite(config)
    copied = Copied(config.copying, read_corpus(config.copying, run.tokenizer))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_no_garbage_collection", nullcontext)  # its collections take ten times as long
        for cell in cells(run, config):
            drafter = run.drafters[cell.method]
            record = runner._generate_one(
                run, config, cell, run.talks(), drafter and copied.beside(drafter, cell)
            )
            copied.add(record)
            assert record.steps, record.error
            found.append((record.token_ids, record.steps.n_drafted, record.steps.n_accepted))
    return sorted(found)


def started(config: BenchConfig) -> object:
    """The engine that a command runs."""
    seen: list[str] = []

    def engine(name: str) -> Callable[[BenchConfig], None]:
        def start(_: BenchConfig) -> None:
            seen.append(name)
            raise Enough

        return start

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "parse_run", lambda _: config)
        for name in cli.ENGINES:
            patch.setitem(cli.ENGINES, name, engine(name))
        with pytest.raises(Enough):
            cli._run([])
    return seen


def servers(config: BenchConfig) -> object:
    """The servers that a run starts, by which Python and with which arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served, "require_vllm", lambda python: f"the one of {python}")
        return served._engine(config)


def threads(config: BenchConfig) -> object:
    """CPU threads when a run begins."""
    seen: list[int] = []

    def begin(_: BenchConfig) -> run_folder.Decoding:
        seen.append(torch.get_num_threads())
        raise Enough

    with pytest.raises(Enough):
        run_folder.fill(config, begin)
    return seen


GREEDY = {"decoding.temperatures": (0.0,)}
SAMPLED = {"decoding.temperatures": (1.0,)}
COPYING = {**GREEDY, "drafter": (), "include": ("suffix_lookup",)}
VLLM = {**GREEDY, "engine.name": "vllm", "engine.python": "<root>/python", "decoding.runtime": "auto"}

EFFECTS: dict[str, tuple[Callable[[BenchConfig], object], Options, Any]] = {
    "drafter": (loaded, {}, ("copy=<root>/copy",)),
    "include": (loaded, {}, ("prompt_lookup",)),
    "compose": (loaded, {"include": ("prompt_lookup",)}, ("fast=prompt_lookup+small",)),
    "device": (placed, {}, "cuda"),
    "threads": (threads, {}, 2),
    "seed": (decoded, SAMPLED, 1),
    "target.model": (loaded, {}, "<root>/small"),
    "target.dtype": (loaded, {}, "float64"),
    "target.quantization": (asked, {}, "4bit"),
    "target.attn": (loaded, {}, "eager"),
    "target.trust_remote_code": (asked, {}, True),
    "data.source": (prompts, {}, "<root>/others.jsonl"),
    "data.split": (prompts, {}, "train"),
    "data.document": (prompts, {}, "title"),
    "data.reference": (prompts, {}, "title"),
    "data.messages": (prompts, {"data.prompt": "{document}"}, "talk"),
    "data.template_arguments": (prompts, {"target.model": "<root>/chatty"}, {"extra": "w8"}),
    "data.skip_bad_rows": (prompts, {"data.source": "<root>/bad.jsonl"}, True),
    "data.turns": (turns, {"data.prompt": "{document}", "data.messages": "talks"}, "first"),
    "data.category": (prompts, {}, "b"),
    "data.prompt": (prompts, {}, "w5 {document}"),
    "data.template": (prompts, {"target.model": "<root>/chatty"}, "plain"),
    "data.max_prompt_tokens": (prompts, {}, 5),
    "data.limit": (prompts, {}, 4),
    "decoding.temperatures": (decoded, GREEDY, (1.0,)),
    "decoding.gammas": (decoded, GREEDY, (3,)),
    "decoding.adaptive": (loaded, {}, True),
    "decoding.top_k": (decoded, SAMPLED, 1),
    "decoding.top_p": (decoded, SAMPLED, 0.1),
    "decoding.rule": (decoded, SAMPLED, "lenience"),
    "decoding.runtime": (loaded, {}, "packed"),
    "decoding.max_new_tokens": (decoded, GREEDY, 7),
    "decoding.repeats": (decoded, GREEDY, 2),
    "decoding.student_alone": (decoded, GREEDY, True),
    "copying.corpus": (decoded, COPYING, "<root>/corpus"),
    "copying.earlier_outputs": (decoded, COPYING, True),
    "engine.name": (started, {"decoding.runtime": "auto"}, "vllm"),
    "engine.python": (servers, VLLM, "<root>/another"),
    "engine.arguments": (servers, VLLM, "--enforce-eager"),
}
"""Option -> where its effect is seen, what else differs from the tiny run, another value."""

ELSEWHERE = {
    "suite": "benchmarks/test_suites.py::test_a_flag_wins_over_the_suite_and_the_suite_over_the_default",
    "output": "benchmarks/test_run.py::test_generations_of_the_same_seed_are_the_same",
    "overwrite": "benchmarks/test_run.py::test_another_run_is_never_overwritten_unasked",
    "json": "benchmarks/test_run.py::test_one_line_of_json_says_what_the_table_says",
    "engine.endpoint": "serving/test_served_run.py::test_what_vllm_does_not_give_is_none_and_every_figure_follows_"
    "from_the_records",
    "engine.concurrency": "serving/test_served_run.py::test_the_load_table_and_the_report",
}
"""Option -> the test that shows what it does, by its flag."""


def names(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of all options."""
    found = []
    hints = get_type_hints(config)
    for field in fields(config):
        inner = hints[field.name]
        found += names(inner, f"{prefix}{field.name}.") if is_dataclass(inner) else [prefix + field.name]
    return found


def with_option(config: BenchConfig, option: str, value: Any) -> BenchConfig:
    table, _, name = option.rpartition(".")
    inner = replace(getattr(config, table), **{name: value}) if table else value
    return replace(config, **{table or name: inner})


def placed_under(root: Path, value: Any) -> Any:
    """The value with its paths."""
    if isinstance(value, tuple):
        return tuple(placed_under(root, each) for each in value)
    return value.replace("<root>", str(root)) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def root(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders target, copy, small and chatty (with a chat template); rows, other rows, and rows of which one is bad."""
    folder = tmp_path_factory.mktemp("options")
    for name in ("target", "copy", "small"):
        (folder / name).symlink_to(models_folder / name)
    AutoModelForCausalLM.from_pretrained(models_folder / "target").save_pretrained(folder / "chatty")
    tokenizer = AutoTokenizer.from_pretrained(models_folder / "target")
    tokenizer.chat_template = (
        "{{ extra }} w9 {{ messages[0]['content'] }} w9 {{ messages[1]['content'] if messages[1:] }}"
    )
    tokenizer.save_pretrained(folder / "chatty")
    rows: list[Options] = [
        {
            "document": " ".join(WORDS[(i * 7 + j) % 60] for j in range(6)),
            "reference": WORDS[i],
            "title": WORDS[i + 1],
            "category": "ab"[i % 2],
            "talk": [{"role": "user", "content": WORDS[i]}],
            "talks": [{"role": "user", "content": word} for word in WORDS[i : i + 2]],
        }
        for i in range(20)
    ]
    (folder / "corpus").mkdir()
    (folder / "corpus" / "words.txt").write_text(" ".join([*WORDS, *WORDS[::-1]] * 3))
    for name, kept in (("rows", rows), ("others", rows[::-1]), ("bad", [{"document": 3}, *rows])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return folder


@pytest.fixture
def tiny(root: Path, tmp_path: Path) -> Callable[[Options], BenchConfig]:
    """tiny({"seed": 1}) -> the config of a run of three prompts by the target and a model, with these options."""

    def make(also: Options) -> BenchConfig:
        config = BenchConfig(
            output=tmp_path / "run",
            drafter=(f"small={root / 'small'}",),
            include=(),
            device="cpu",
            threads=1,
            target=TargetConfig(model=str(root / "target")),
            data=DataConfig(source=str(root / "rows.jsonl"), split="all", prompt="w1 {document} w2", limit=3),
            decoding=DecodingConfig(gammas=(2,), runtime="eager", max_new_tokens=12),
        )
        for option, value in also.items():
            config = with_option(config, option, placed_under(root, value))
        return config

    return make


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_option_is_here() -> None:
    assert sorted([*EFFECTS, *ELSEWHERE]) == sorted(names(BenchConfig))


@pytest.mark.parametrize("option", ELSEWHERE)
def test_an_option_is_used_where_its_effect_is_shown(option: str) -> None:
    path, _, name = ELSEWHERE[option].partition("::")
    code = (TESTS / path).read_text()
    (test,) = (node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef) and node.name == name)
    flag = f'"--{option.rpartition(".")[2].replace("_", "-")}"'
    assert flag in (ast.get_source_segment(code, test) or "")


@pytest.mark.parametrize("option", EFFECTS)
def test_an_option_changes_what_a_run_does(
    tiny: Callable[[Options], BenchConfig], root: Path, option: str
) -> None:
    """And what is seen differs by the option alone: without a change it is the same."""
    effect, also, value = EFFECTS[option]
    base = tiny(also)
    other = with_option(base, option, placed_under(root, value))
    for config in (base, other):
        check(config)
    before = effect(base)
    assert effect(base) == before
    assert effect(other) != before


def test_remote_code_of_a_served_target_is_trusted_by_the_server(
    tiny: Callable[[Options], BenchConfig],
) -> None:
    """It runs there, and not here."""
    found = [servers(tiny(VLLM | {"target.trust_remote_code": trusted})) for trusted in (False, True)]
    told = ["--trust-remote-code" in engine.arguments for engine in found if isinstance(engine, served.Engine)]
    assert told == [False, True]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("target.quantization", "4bit"),
        ("target.attn", "eager"),
        ("decoding.runtime", "eager"),
        ("decoding.rule", "block"),
        ("decoding.adaptive", True),
        ("decoding.student_alone", True),
        ("include", ("suffix_lookup",)),
        ("engine.endpoint", ("target=http://127.0.0.1:9",)),
    ],
)
def test_what_servers_would_not_heed_is_refused(
    tiny: Callable[[Options], BenchConfig], option: str, value: Any
) -> None:
    """An endpoint is refused beside the Python that would start a server."""
    with pytest.raises(UserError):
        check(tiny(VLLM | {option: value}))
