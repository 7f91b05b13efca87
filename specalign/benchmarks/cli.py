"""specalign-bench: run a suite, report on a run, compare runs. Imports nothing heavy before it has to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from specalign import __version__
from specalign.benchmarks.config import BenchConfig, check
from specalign.config import flag_value, load_config, parse_flags
from specalign.errors import UserError, run_cli, unknown
from specalign.templates import prompt_text

PROGRAM = "specalign-bench"
USAGE = f"""\
usage: {PROGRAM} COMMAND [OPTIONS]

Measure drafters by speculative decoding, next to the plain target in the same run.

commands:
  run --suite FILE --drafter NAME=PATH ...   decode, write records.jsonl, result.json and the report
  check --suite FILE ...                     look at models, data and memory without loading a weight
  report RUN                                 rebuild report.md and the plots of a run from its files
  compare RUN RUN ...                        put the rows of several runs side by side
  explain RUN                                say why each drafter is as fast as it is, and which gamma is best
  plan --target-ms ... --alpha ...           predict speed-ups from times measured elsewhere

{PROGRAM} COMMAND --help shows a command's options, {PROGRAM} --version the version."""

C = TypeVar("C")


@dataclass(frozen=True)
class CompareConfig:
    """Put the rows of several runs side by side."""

    output: Path = Path("reports/comparison")
    """Folder of the comparison: comparison.md and plots."""
    force: bool = False
    """Compare runs of different prompts, dtypes or metric versions all the same, and say so."""


@dataclass(frozen=True)
class ReportConfig:
    """Rebuild report.md and the plots of a run from result.json and records.jsonl."""


@dataclass(frozen=True)
class ExplainConfig:
    """Say why each drafter of a run is as fast as it is, from the medians of its own steps."""


@dataclass(frozen=True)
class PlanConfig:
    """Predict speed-ups from times measured elsewhere, by Leviathan et al.'s formula with measured costs."""

    target_ms: float = 0.0
    """Milliseconds of the target's call on one token (required)."""
    verify_ms: float = 0.0
    """Milliseconds of the target's call on gamma + 1 tokens (required)."""
    draft_ms: float = 0.0
    """Milliseconds of the drafter's call on one token; 0: drafts are free."""
    alpha: float = 0.7
    """Acceptance rate, 0 to 1: the chance that a drafted token is accepted."""
    overhead_ms: float = 0.0
    """Milliseconds of everything else in a speculative step, beyond a plain step's."""
    gamma: int = 4
    """Draft length that verify_ms was measured at."""
    gamma_max: int = 8
    """Longest draft to consider, in tokens."""


def entry() -> None:
    """The console script."""
    sys.exit(run_cli(PROGRAM, lambda: main(sys.argv[1:])))


def main(arguments: Sequence[str]) -> None:
    """Do what the command line says."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0] == "--version":
        print(__version__)
        return
    command, rest = arguments[0], list(arguments[1:])
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    COMMANDS[command](rest)


def parse_run(arguments: Sequence[str], command: str = "run") -> BenchConfig:
    """The config of ``run`` and ``check``: flags over suite file over defaults."""
    suite = flag_value(arguments, "--suite")
    default = BenchConfig() if suite is None else load_config(BenchConfig, Path(suite))
    if "output" not in _keys_of(suite):
        default = replace(default, output=Path("reports") / (Path(suite).stem if suite else "run"))
    config = parse_flags(
        BenchConfig,
        _gather(arguments, "--drafter"),
        default=default,
        program=f"{PROGRAM} {command}",
        description=BenchConfig.__doc__ or "",
    )
    check(config)
    return replace(
        config, data=replace(config.data, prompt=prompt_text(config.data.prompt, config.data.source))
    )


def _run(arguments: Sequence[str]) -> None:
    config = parse_run(arguments)
    from transformers.utils import logging

    from specalign.benchmarks.runner import run

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    run(config)
    _show(config.output)


def _check(arguments: Sequence[str]) -> None:
    config = parse_run(arguments, "check")
    from transformers.utils.logging import set_verbosity_error

    from specalign.benchmarks.preflight import findings
    from specalign.preflight import report

    set_verbosity_error()
    report(f"{PROGRAM}: before the run", findings(config, data=True))


def _report(arguments: Sequence[str]) -> None:
    folders, _ = _folders("report", arguments, ReportConfig())
    if len(folders) != 1:
        raise UserError("report takes one run folder")
    _show(folders[0])


def _compare(arguments: Sequence[str]) -> None:
    folders, config = _folders("compare", arguments, CompareConfig())
    if len(folders) < 2:
        raise UserError("compare takes at least two run folders")
    from specalign.reports import compare_runs

    print(compare_runs(folders, config.output, force=config.force))


def _explain(arguments: Sequence[str]) -> None:
    folders, _ = _folders("explain", arguments, ExplainConfig())
    if len(folders) != 1:
        raise UserError("explain takes one run folder")
    from specalign.benchmarks.explain import explain
    from specalign.results import RECORDS_FILE, read_records, read_result

    print("\n".join(explain(read_result(folders[0]), list(read_records(folders[0] / RECORDS_FILE)))))


def _plan(arguments: Sequence[str]) -> None:
    config = parse_flags(
        PlanConfig,
        arguments,
        default=PlanConfig(),
        program=f"{PROGRAM} plan",
        description=PlanConfig.__doc__ or "",
    )
    if config.target_ms <= 0 or config.verify_ms <= 0:
        raise UserError("plan needs --target-ms and --verify-ms, both above 0")
    if not 0 <= config.alpha <= 1:
        raise UserError(f"--alpha must lie in 0..1, not {config.alpha:g}")
    if min(config.draft_ms, config.overhead_ms) < 0 or min(config.gamma, config.gamma_max) < 1:
        raise UserError("--draft-ms and --overhead-ms must not be negative, --gamma and --gamma-max at least 1")
    from specalign.benchmarks.explain import plan, plan_lines

    found = plan(
        target_s=config.target_ms / 1000,
        verify_s=config.verify_ms / 1000,
        draft_s=config.draft_ms / 1000,
        overhead_s=config.overhead_ms / 1000,
        alpha=config.alpha,
        gamma=config.gamma,
        gamma_max=config.gamma_max,
    )
    print("\n".join(plan_lines(found, config.alpha)))


def _show(folder: Path) -> None:
    """Build the report, print the table, and say where the report is."""
    from rich.console import Console

    from specalign.reports import build_report, result_table
    from specalign.results import read_result

    report = build_report(folder)
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(result_table(read_result(folder)))
    print(f"report: {report}")


def _folders(command: str, arguments: Sequence[str], default: C) -> tuple[list[Path], C]:
    """Leading words are run folders, the rest are flags."""
    names = list(takewhile(lambda word: not word.startswith("-"), arguments))
    config = parse_flags(
        type(default),
        arguments[len(names) :],
        default=default,
        program=f"{PROGRAM} {command} RUN",
        description=type(default).__doc__ or "",
    )
    for name in names:
        if not Path(name).is_dir():
            raise UserError(f"no such run folder: {name}")
    return [Path(name) for name in names], config


def _gather(arguments: Sequence[str], flag: str) -> list[str]:
    """Put the values of a repeated ``flag`` behind one, so that ``--f a --f b`` and ``--f a b`` are the same."""
    values: list[str] = []
    rest: list[str] = []
    taking = False
    for word in arguments:
        if word == flag or word.startswith(f"{flag}="):
            taking = word == flag
            values += [] if taking else [word.removeprefix(f"{flag}=")]
        elif taking and not word.startswith("-"):
            values.append(word)
        else:
            taking = False
            rest.append(word)
    return [*rest, flag, *values] if values else list(arguments)


def _keys_of(suite: str | None) -> set[str]:
    import tomllib

    return set() if suite is None else set(tomllib.loads(Path(suite).read_text(encoding="utf-8")))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "run": _run,
    "check": _check,
    "report": _report,
    "compare": _compare,
    "explain": _explain,
    "plan": _plan,
}
