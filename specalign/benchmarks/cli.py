"""specalign-bench: run a suite, report on a run, compare runs. Imports nothing heavy before it has to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from specalign import __version__
from specalign.benchmarks.analysis_cli import (
    convert_command,
    deploy_command,
    explain_command,
    plan_command,
    recompute_command,
    schema_command,
    seeds_command,
    study_command,
    verify_command,
)
from specalign.benchmarks.arguments import PROGRAM, flags, run_folders
from specalign.benchmarks.config import BenchConfig
from specalign.benchmarks.engines import ENGINES
from specalign.benchmarks.prepare import prepared, suite_config
from specalign.config import STRICT, flag_value, gathered
from specalign.errors import UserError, run_cli, unknown
from specalign.ranges import Above0, Device, Output
from specalign.terminal import say, show

USAGE = f"""\
usage: {PROGRAM} COMMAND [OPTIONS]

Measure drafters by speculative decoding, next to the plain target in the same run.

commands:
  run --suite FILE --drafter NAME=PATH ...   decode, write records.jsonl, result.json and the report
  check --suite FILE ...                     look at models, data and memory without loading a weight
  selftest --device cuda                     prove the engine on this machine: parity, losslessness, timing
  report RUN                                 rebuild report.md, report.html and the plots of a run
  compare RUN RUN ...                        put the rows of several runs side by side
  export RUN --csv --latex --pdf             write records, tables and pictures as files for other tools and papers
  publish RUN                                write a finished run in its published form, for reports/
  index                                      write reports/README.md, the index of the published runs
  explain RUN                                say why each drafter is as fast as it is, and which gamma is best
  deploy RUN                                 print the vllm serve command with the gamma that a run recommends
  plan --target-ms ... --alpha ...           predict speed-ups from times measured elsewhere
  seeds RUN RUN ...                          compare objectives over training seeds
  study RUN --training runs/study            write which objective won, for which decoding, by how much
  convert RUN --to vllm                      show a run's acceptance in another project's figures
  verify RUN                                 recompute every figure from the raw files
  recompute RUN ...                          bring finished runs to today's definitions: result.json, report
  schema --of result                         print the JSON schema of a run's file

{PROGRAM} COMMAND --help shows a command's options, {PROGRAM} --version the version."""

C = TypeVar("C")


@dataclass(frozen=True)
class CompareConfig:
    """Put the rows of several runs side by side."""

    output: Output = Path("reports/comparison")
    """Folder of the comparison: comparison.md and plots."""
    force: bool = False
    """Compare runs of different prompts, dtypes or metric versions all the same, and say so."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class SelftestConfig:
    """Prove the engine on this machine with tiny models, within two minutes; exit code 1 if anything fails."""

    device: Device = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    compiled: bool = True
    """Compile a tiny model as well (half a minute or more on a CPU)."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class ReportConfig:
    """Rebuild report.md, report.html and the plots of a run from result.json and records.jsonl."""

    json: bool = False
    """Print one line of JSON instead of the table."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class ExportConfig:
    """Write the records of a run as a table, a row a generation (steps become columns of lists, JSON in CSV), the
    tables and pictures of its report for papers, and its drafters' learning curves; or, of a folder of training runs,
    the learning curves of all of them, into its folder comparison."""

    parquet: bool = False
    """Write records.parquet into the run folder."""
    csv: bool = False
    """Write records.csv into the run folder, the report's tables as tables/NAME.csv, and the validations of each arm
    and seed as curves.csv; a text that a spreadsheet would take for a formula gets a ' before it."""
    latex: bool = False
    """Write the report's tables as tables/NAME.tex, for the package booktabs."""
    svg: bool = False
    """Write the report's pictures and the learning curves (curves.svg) as SVG into the run folder."""
    pdf: bool = False
    """Write them as PDF."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class PublishConfig:
    """Write a finished run in its published form, small and checkable, into a folder of its own."""

    output: Path | None = None
    """Folder to make; default: reports/<date>_<suite>_<hardware>."""
    most_mb: Above0 = 1.5
    """Largest size of the whole, in MB."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class IndexConfig:
    """Write the index of the published runs of a folder into its README.md."""

    folder: Path = Path("reports")
    """Folder that holds the runs."""
    __pydantic_config__ = STRICT


def entry() -> None:
    """The console script."""
    sys.exit(run_cli(PROGRAM, lambda: main(sys.argv[1:])))


def main(arguments: Sequence[str]) -> None:
    """Do what the command line says."""
    if not arguments or arguments[0] in ("-h", "--help"):
        say(USAGE)
        return
    if arguments[0] == "--version":
        say(__version__)
        return
    command, rest = arguments[0], list(arguments[1:])
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    COMMANDS[command](rest)


def parse_run(arguments: Sequence[str], command: str = "run") -> BenchConfig:
    """The config of ``run`` and ``check``: flags over suite file over defaults."""
    default = suite_config(flag_value(arguments, "--suite"))
    return prepared(flags(command, gathered(gathered(arguments, "--drafter"), "--endpoint"), default))


def _run(arguments: Sequence[str]) -> None:
    config = parse_run(arguments)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    ENGINES[config.engine.name](config)
    _show(config.output, as_json=config.json)


def _check(arguments: Sequence[str]) -> None:
    config = parse_run(arguments, "check")
    from transformers.utils.logging import set_verbosity_error

    from specalign.benchmarks.preflight import findings
    from specalign.preflight import report

    set_verbosity_error()
    report(f"{PROGRAM}: before the run", findings(config, data=True))


def _selftest(arguments: Sequence[str]) -> None:
    config = flags("selftest", arguments, SelftestConfig())
    from specalign.benchmarks.selftest import results_table, selftest
    from specalign.models.load import resolve_device

    device = resolve_device(config.device)
    if device.type == "mps":
        raise UserError("the selftest compares in float64, which MPS has not; use --device cpu")
    outcomes = selftest(device, compiled=config.compiled)
    show(results_table(outcomes, device))
    if any(outcome.passed is False for outcome in outcomes):
        sys.exit(1)


def _report(arguments: Sequence[str]) -> None:
    (folder,), config = run_folders("report", arguments, ReportConfig(), most=1)
    _show(folder, as_json=config.json)


def _compare(arguments: Sequence[str]) -> None:
    folders, config = run_folders("compare", arguments, CompareConfig())
    if len(folders) < 2:
        raise UserError("compare takes at least two run folders")
    from specalign.reports import compare_runs

    say(compare_runs(folders, config.output, force=config.force))


def _export(arguments: Sequence[str]) -> None:
    (folder,), config = run_folders("export", arguments, ExportConfig(), most=1)
    wanted = [name for name, chosen in asdict(config).items() if chosen]
    if not wanted:
        raise UserError("export needs --parquet, --csv, --latex, --svg or --pdf")
    from specalign.reports.export import export

    for line in export(folder, wanted):
        say(line)


def _publish(arguments: Sequence[str]) -> None:
    (folder,), config = run_folders("publish", arguments, PublishConfig(), most=1)
    from specalign.reports.publish import publish

    say(publish(folder, config.output, most_bytes=round(1e6 * config.most_mb)))


def _index(arguments: Sequence[str]) -> None:
    config = flags("index", arguments, IndexConfig())
    if not config.folder.is_dir():
        raise UserError(f"no such folder: {config.folder}")
    from specalign.reports.index import write_index

    say(write_index(config.folder))


def _show(folder: Path, *, as_json: bool) -> None:
    """Build the report, and print the table and where the report is, or both as one line of JSON."""
    from specalign.analysis.partial import result_so_far
    from specalign.reports import build_report, result_table

    result = result_so_far(folder)
    report = build_report(folder, result)
    if as_json:
        rows = [asdict(row) for row in result.rows]
        checks = {check.name: check.passed for check in result.checks}
        say(json.dumps({"status": result.status, "report": str(report), "checks": checks, "rows": rows}))
        return
    show(result_table(result))
    say(f"report: {report}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "run": _run,
    "check": _check,
    "selftest": _selftest,
    "report": _report,
    "compare": _compare,
    "export": _export,
    "publish": _publish,
    "index": _index,
    "explain": explain_command,
    "deploy": deploy_command,
    "plan": plan_command,
    "seeds": seeds_command,
    "study": study_command,
    "convert": convert_command,
    "verify": verify_command,
    "recompute": recompute_command,
    "schema": schema_command,
}
