"""The suite of a benchmark run: small frozen dataclasses whose field docs are also the ``--help`` text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from specalign.config import STRICT, NamedValues, checked
from specalign.errors import UserError, unknown
from specalign.ranges import (
    Arguments,
    Batch,
    Batches,
    CountOrZero,
    Device,
    Gammas,
    Output,
    Seed,
    ShareAbove0,
    Temperatures,
    Threads,
    Tokens,
    require_name,
)
from specalign.results import ADAPTIVE, LOOKUP, LOOKUPS, SUFFIX, TARGET

RULES = ("token", "block", "lenience")
"""Names of the verification rules, known before torch is imported."""


@dataclass(frozen=True)
class TargetConfig:
    """The model that is made faster."""

    model: str = "builtin:smollm2"
    """Hub id, local folder, .gguf file, or builtin:smollm2."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Weights' dtype, of the drafters too; auto: bfloat16 on CUDA, else float32."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """bitsandbytes quantisation of the target alone: 4bit (NF4, also on CPU) or 8bit."""
    attn: Literal["auto", "sdpa", "eager"] = "auto"
    """Attention implementation."""
    trust_remote_code: bool = False
    """Run the model repository's own code."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class DataConfig:
    """Prompts and references."""

    source: Annotated[str, arg(aliases=["--data"])] = "builtin:docstrings"
    """builtin:docstrings, builtin:functions, spec_bench:PATH, cnn_dailymail, xsum, gsm8k, wmt, owner/name[:config], a
    file or folder."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """Split of the data set; a file without splits is cut by content, and all takes the whole of it."""
    document: str = ""
    """Column of the document, or column.field; empty: the source's own default."""
    reference: str = ""
    """Column of the reference, or column.field; empty: the source's own default."""
    messages: str = ""
    """Column of a conversation's messages; empty: messages, conversations, prompt or turns, where it is a list."""
    skip_bad_rows: Annotated[bool, arg(aliases=["--skip-bad-rows"])] = False
    """List rows that cannot be used and go on without them, instead of stopping."""
    category: str = ""
    """Only examples of this category; empty: all."""
    prompt: str = ""
    """The user's message, with {document} in it, or a name (summarize, tldr, ...); empty: the source's own."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """Wrap the message in the tokenizer's chat template; auto: where it has one."""
    turns: Literal["all", "first", "last"] = "all"
    """Which turns of a conversation are decoded: all, each after what was decoded before it; the first alone; or the
    last alone, after the data's own answers."""
    template_arguments: NamedValues = field(default_factory=dict)
    """Given to the chat template, such as enable_thinking=false."""
    max_prompt_tokens: Tokens = 256
    """Longest prompt, in tokens; documents are cut to fit, conversations lose their oldest turns; both are counted."""
    limit: Annotated[CountOrZero, arg(aliases=["--limit"])] = 32
    """Number of prompts; 0: the whole split."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class DecodingConfig:
    """How each prompt is decoded."""

    temperatures: Temperatures = (0.0, 1.0)
    """Sampling temperatures; 0: greedy."""
    gammas: Gammas = (4,)
    """Draft lengths, in tokens."""
    adaptive: bool = False
    """Let each drafter that is a model decode at adaptive draft lengths too, as NAME_adaptive: never more than the
    largest gamma, and less where the next token is not expected to pay, by call times measured first."""
    top_k: CountOrZero = 0
    """Sample from the k likeliest tokens, target and drafter alike; 0: off."""
    top_p: ShareAbove0 = 1.0
    """Sample from the nucleus of this mass, target and drafter alike; 1: off."""
    rule: str = "token"
    """Verification rule."""
    runtime: Literal["auto", "eager", "packed", "compiled"] = "auto"
    """How steps run: eager; packed (weights laid out for the CPU's kernels); compiled (torch.compile: on a CPU
    about two minutes a draft length of a 30-layer target); auto: packed where it can be, compiled on CUDA (eager where
    the target is an encoder-decoder model or quantised), else eager."""
    max_new_tokens: Tokens = 64
    """Most new tokens of a generation."""
    repeats: Batch = 1
    """Generations of each prompt by each method; from 2 on each method is compared with itself too (A/A)."""
    student_alone: bool = False
    """Let each drafter decode every prompt on its own too, to see its own quality."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class CopyingConfig:
    """What suffix_lookup copies from besides the prompt and the output so far."""

    corpus: Annotated[str, arg(aliases=["--corpus"])] = ""
    """A text file, or a folder of text files, up to a million tokens of the target's; empty: none."""
    earlier_outputs: Annotated[bool, arg(aliases=["--earlier-outputs"])] = False
    """What the same row (method, temperature, draft length, repeat) wrote to earlier prompts of the run too."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class EngineConfig:
    """What decodes."""

    name: Annotated[Literal["own", "vllm"], arg(aliases=["--engine"])] = "own"
    """own: specalign's; vllm: a vLLM server for the plain target and for each drafter and draft length."""
    python: Annotated[str, arg(aliases=["--engine-python"])] = ""
    """Python of the environment that has vLLM; empty: $SPECALIGN_VLLM_PYTHON."""
    arguments: Annotated[Arguments, arg(aliases=["--engine-arguments"])] = ""
    """More arguments of vllm serve, in one word: --engine-arguments="--enforce-eager"."""
    endpoint: Annotated[tuple[str, ...], arg(aliases=["--endpoint"])] = ()
    """Running vLLM servers, each as NAME=URL, the plain target's as target=URL; empty: servers are started."""
    concurrency: Annotated[Batches, arg(aliases=["--concurrency"])] = ()
    """Requests at a time of a load test, such as 1 4 16, at the first temperature; empty: none."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class BenchConfig:
    """Measure drafters by speculative decoding, next to the plain target in the same run."""

    suite: Path | None = None
    """TOML file with any of these fields; flags win over it."""
    output: Output = Path("reports/run")
    """Folder of the run: records.jsonl, result.json, report.md, report.html and plots."""
    overwrite: bool = False
    """Remove the files that an earlier run wrote into the output folder, and start again."""
    json: bool = False
    """Print one line of JSON at the end instead of the table."""
    drafter: tuple[str, ...] = ()
    """Drafters, each as NAME=PATH (a student folder, any model name, or the folder of an EAGLE-3 head)."""
    include: tuple[str, ...] = (LOOKUP,)
    """Drafters that need no model: prompt_lookup (the latest copy of an n-gram) and suffix_lookup (the likeliest
    continuation of the longest match, as long as it is expected to pay)."""
    compose: tuple[str, ...] = ()
    """Drafters that take turns, each as NAME=FIRST+SECOND, such as fast=suffix_lookup+gkd: every draft comes from
    the one that promises more tokens beyond its cost, by call times measured first and by earlier generations."""
    device: Device = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:N or mps."""
    threads: Threads = 0
    """CPU threads; 0: as torch chooses."""
    seed: Seed = 0
    """Seed of the execution order and of all sampling."""
    target: TargetConfig = field(default_factory=TargetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    copying: CopyingConfig = field(default_factory=CopyingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    __pydantic_config__ = STRICT


def check(config: BenchConfig) -> None:
    """Raise UserError for values out of their ranges, and for those that do not go together."""
    checked(config)
    if config.decoding.rule not in RULES:
        raise unknown("verification rule", config.decoding.rule, RULES)
    for name in config.include:
        if name not in LOOKUPS:
            raise UserError(f"unknown drafter {name!r} in include (choices: {', '.join(LOOKUPS)})")
    if config.copying != CopyingConfig() and SUFFIX not in config.include:
        raise UserError(f"copying.corpus and copying.earlier_outputs are for {SUFFIX}: --include {SUFFIX}")
    names = named_drafters(config)
    for name in names:
        if config.decoding.adaptive and name + ADAPTIVE in names:
            raise UserError(f"--drafter {name}{ADAPTIVE}: the name is taken by decoding.adaptive")
    composed(config)
    named_endpoints(config)
    ENGINE_CHECKS[config.engine.name](config)


def _check_own_engine(config: BenchConfig) -> None:
    engine = config.engine
    if engine.endpoint or engine.concurrency or engine.arguments or engine.python:
        raise UserError("--endpoint, --concurrency and --engine-... need --engine vllm")


def _check_vllm(config: BenchConfig) -> None:
    if config.decoding.student_alone or config.decoding.adaptive or config.decoding.rule != "token":
        raise UserError(
            "vLLM has its own rule and draft length, and no drafter decoding alone: leave decoding.rule at token, "
            "student_alone and adaptive off"
        )
    if config.compose or set(config.include) - {LOOKUP}:
        raise UserError(f"--compose and drafters without a model other than {LOOKUP} are our engine's")
    if (config.target.quantization, config.target.attn, config.decoding.runtime) != ("none", "auto", "auto"):
        raise UserError(
            "target.quantization, target.attn and decoding.runtime are our engine's; "
            "pass vLLM's with --engine-arguments"
        )
    if config.engine.endpoint and (config.engine.python or config.engine.arguments):
        raise UserError("--engine-python and --engine-arguments start servers: leave them out with --endpoint")


ENGINE_CHECKS = {"own": _check_own_engine, "vllm": _check_vllm}


def named_drafters(config: BenchConfig) -> dict[str, str]:
    """NAME -> PATH of ``--drafter``; raises UserError for anything else, or a name used twice."""
    return _named("--drafter", "PATH", config.drafter, taken=(TARGET, *LOOKUPS))


def composed(config: BenchConfig) -> dict[str, tuple[str, str]]:
    """NAME -> (FIRST, SECOND) of ``--compose``; raises UserError for anything else, or a name that is none or taken."""
    parts = (*config.include, *named_drafters(config))
    adaptive = [name + ADAPTIVE for name in named_drafters(config)] if config.decoding.adaptive else []
    wanted = _named("--compose", "FIRST+SECOND", config.compose, taken=(TARGET, *LOOKUPS, *parts, *adaptive))
    found = {}
    for name, pair in wanted.items():
        fits = [(a, b) for a in parts for b in parts if f"{a}+{b}" == pair and a != b]
        if not fits:
            choices = ", ".join(parts)
            raise UserError(
                f"--compose {name}={pair} takes two different drafters of this run (choices: {choices})"
            )
        found[name] = fits[0]
    return found


def named_endpoints(config: BenchConfig) -> dict[str, str]:
    """NAME -> URL of ``--endpoint``; raises UserError for anything else, or a name used twice."""
    return _named("--endpoint", "URL", config.engine.endpoint, taken=())


def _named(flag: str, kind: str, words: tuple[str, ...], taken: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UserError(f"{flag} takes NAME={kind}, not {word!r}")
        require_name(flag, name)
        if name in found or name in taken:
            raise UserError(f"{flag} {word}: the name {name!r} is taken")
        found[name] = value
    return found
