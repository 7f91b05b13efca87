"""The commands that read finished runs, or none: explain, deploy, plan, seeds, study, convert, verify, schema."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from specalign.benchmarks.arguments import flags, run_folders
from specalign.config import STRICT
from specalign.errors import UserError
from specalign.ranges import Above0, Count, CountOrZero, Gamma, NotNegative, Share, Temperature
from specalign.terminal import say, say_script


@dataclass(frozen=True)
class ExplainConfig:
    """Say why each drafter of a run is as fast as it is, and which gamma is best."""

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class DeployConfig:
    """Print the vllm serve command with the gamma that a run recommends."""

    drafter: str = ""
    """Drafter to serve with; empty: the run's fastest."""
    temperature: Temperature = 0.0
    """Sampling temperature of the requests to come; the run must have measured it."""
    concurrency: CountOrZero = 0
    """Requests at a time to come, one of the run's load test; 0: one, by the suite's own rows."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class PlanConfig:
    """Predict speed-ups from times measured elsewhere, and say how many prompts would show a difference."""

    target_ms: NotNegative = 0.0
    """Milliseconds of the target's call on one token."""
    verify_ms: NotNegative = 0.0
    """Milliseconds of the target's call on gamma + 1 tokens; 0: as target_ms, verification is free."""
    draft_ms: NotNegative = 0.0
    """Milliseconds of the drafter's call on one token; 0: drafts are free."""
    alpha: Share = 0.7
    """Acceptance rate, 0 to 1: the chance that a drafted token is accepted."""
    overhead_ms: NotNegative = 0.0
    """Milliseconds of everything else in a speculative step, beyond a plain step's."""
    gamma: Gamma = 4
    """Draft length that verify_ms was measured at."""
    gamma_max: Gamma = 8
    """Longest draft to consider, in tokens."""
    difference: Above0 = 0.03
    """Relative difference in speed that a run should show, with 80 % power."""
    comparisons: Count = 1
    """Differences that the run tests together (explain states them); each is judged the more strictly."""
    deviation: NotNegative = 0.0
    """Standard deviation over prompts of the log ratio of two methods' seconds per token (explain states it);
    0: say nothing of prompts."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class SeedsConfig:
    """Compare objectives over training seeds: the drafters of one objective and several seeds are one side."""

    group: tuple[str, ...] = ()
    """Sides, each as NAME=DRAFTER,DRAFTER,...; none: drafters of one training method are a side."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class StudyConfig:
    """Write RUN/answer.md: which objective, for which decoding, by how much; its drafters are named OBJECTIVE-SEED."""

    training: Path | None = None
    """Folder of the training runs, OBJECTIVE/seed-N: their validation curves are kept as RUN/training.json,
    their acceptance on test prompts (data.n-test) as RUN/held_out.json; runs that are not complete are left out."""
    baseline: str = ""
    """Objective to compare with; empty: that of RUN/hypotheses.toml, else the first with several seeds."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class ConvertConfig:
    """Show a run's acceptance in the figures of other projects."""

    to: Literal["all", "vllm", "sglang", "spec-bench", "eagle", "deepspec"] = "all"
    """Whose figures."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class VerifyConfig:
    """Check that result.json is valid, its raw files untouched and of one run, and every figure what they give."""

    seal: Annotated[str, arg(metavar="HEX")] = ""
    """The seal that the run was published with, or its first 16 characters or more; empty: only print it."""

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class RecomputeConfig:
    """Bring a finished run to today's definitions: result.json anew from its raw files, and the report."""

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class SchemaConfig:
    """Print the JSON schema of a file of a run."""

    of: Literal["result", "record", "probe"] = "result"
    """result.json, or one line of records.jsonl or probes.jsonl."""
    __pydantic_config__ = STRICT


def explain_command(arguments: Sequence[str]) -> None:
    """``specalign-bench explain RUN``."""
    (folder,), _ = run_folders("explain", arguments, ExplainConfig(), most=1)
    from specalign.analysis.explain import explain
    from specalign.analysis.partial import run_so_far

    say("\n".join(explain(run_so_far(folder))))


def deploy_command(arguments: Sequence[str]) -> None:
    """``specalign-bench deploy RUN``."""
    (folder,), config = run_folders("deploy", arguments, DeployConfig(), most=1)
    from specalign.analysis.deploy import Wish, deploy_lines
    from specalign.analysis.partial import result_so_far

    wish = Wish(config.drafter, config.temperature, config.concurrency)
    say_script(deploy_lines(result_so_far(folder), wish, resolve=_servable))


def _servable(name: str) -> str:
    """What vLLM loads for a model's name; a .gguf file and the built-in model are converted first."""
    if not name.startswith("builtin:") and not name.endswith(".gguf"):
        return name
    from specalign.models.load import resolve_model

    return resolve_model(name)


def plan_command(arguments: Sequence[str]) -> None:
    """``specalign-bench plan --target-ms ... --draft-ms ... --alpha ...``."""
    config = flags("plan", arguments, PlanConfig())
    _check_plan(config)
    if config.target_ms:
        say("\n".join(_speed_plan(config)))
    if config.deviation:
        from specalign.metrics.comparisons import SHARE, prompts_needed

        n = prompts_needed(config.difference, config.deviation, level=SHARE / config.comparisons)
        together = f", {config.comparisons} differences tested together" if config.comparisons > 1 else ""
        deviation = f"a deviation of {config.deviation:g}{together}"
        say(f"A difference of {config.difference:.1%} takes {n} prompts at {deviation}.")


def _check_plan(config: PlanConfig) -> None:
    if config.target_ms <= 0 and config.deviation <= 0:
        raise UserError("plan needs --target-ms (for speed-ups) or --deviation (for prompts), above 0")


def _speed_plan(config: PlanConfig) -> list[str]:
    from specalign.analysis.cost_model import StepCosts
    from specalign.analysis.outlook import plan, plan_lines

    costs = StepCosts(
        config.gamma,
        target_s=config.target_ms / 1000,
        plain_overhead_s=0.0,
        draft_s=config.gamma * config.draft_ms / 1000,
        verify_s=(config.verify_ms or config.target_ms) / 1000,
        overhead_s=config.overhead_ms / 1000,
    )
    return plan_lines(plan(costs, config.alpha, config.gamma_max), config.alpha)


def seeds_command(arguments: Sequence[str]) -> None:
    """``specalign-bench seeds RUN RUN ...``."""
    folders, config = run_folders("seeds", arguments, SeedsConfig())
    from specalign.analysis.partial import read_complete
    from specalign.analysis.seeds import compare, grouped, lines, parse_groups, require_same_prompts

    runs = [read_complete(folder) for folder in folders]
    require_same_prompts(runs)
    found = compare(runs, grouped(runs, parse_groups(config.group)))
    if not found:
        raise UserError("no two of these objectives were measured at the same temperature, gamma and prompts")
    say("\n".join(lines(found)))


def study_command(arguments: Sequence[str]) -> None:
    """``specalign-bench study RUN --training runs/study``."""
    (folder,), config = run_folders("study", arguments, StudyConfig(), most=1)
    from specalign.analysis.held_out import collect, read_held_out
    from specalign.analysis.study import read_study, trained, unfinished
    from specalign.reports.study import write_study

    curves, found = None, read_held_out(folder)
    if config.training:
        if not config.training.is_dir():
            raise UserError(f"no such folder: {config.training}")
        curves, found = trained(config.training), collect(config.training) or found
        if left_out := unfinished(config.training):
            say(f"left out, their training is not complete: {', '.join(left_out)}", file=sys.stderr)
    answer = write_study(folder, read_study(folder, config.baseline, curves), found)
    say(answer.read_text(encoding="utf-8"))


def convert_command(arguments: Sequence[str]) -> None:
    """``specalign-bench convert RUN --to vllm``."""
    (folder,), config = run_folders("convert", arguments, ConvertConfig(), most=1)
    from specalign.metrics.convert import PROJECTS, figures_of, foreign_figures
    from specalign.run_files import read_run

    run = read_run(folder)
    projects = PROJECTS if config.to == "all" else (config.to.replace("-", "_"),)
    for row in run.result.rows:
        key = row.method, row.temperature, row.gamma
        steps = [r.steps for r in run.records if (r.method, r.temperature, r.gamma) == key and r.steps]
        if row.kind == "target" or not steps:
            continue
        say(f"{row.method}, temperature {row.temperature:g}, gamma {row.gamma}")
        foreign = foreign_figures(steps, row.gamma)
        for project in projects:
            for name, value in figures_of(project, foreign).items():
                say(f"  {project.replace('_', '-')}: {name.replace('_', ' ')} = {_shown(value)}")


def _shown(value: float | list[float] | None) -> str:
    if isinstance(value, list):
        return ", ".join(f"{item:.4f}" for item in value) or "none"
    return "none" if value is None else f"{value:.4f}"


def verify_command(arguments: Sequence[str]) -> None:
    """``specalign-bench verify RUN``: a UserError names the first things that do not hold."""
    (folder,), config = run_folders("verify", arguments, VerifyConfig(), most=1)
    from specalign.analysis.audit import audit
    from specalign.benchmarks.at_hand import at_hand

    found = audit(folder, at_hand(folder))
    run, wrong = found.run, found.problems
    if config.seal and not found.seal.startswith(config.seal.lower()):
        wrong = [f"the seal is {found.seal}, not {config.seal}", *wrong]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{folder}: {'; '.join(wrong[:3])}{more}")
    say(
        f"{folder}: result.json is valid, {len(run.records)} records and {len(run.probes)} probes are untouched and of "
        f"one run, and all figures of {len(run.result.rows)} rows follow from them"
    )
    for line in found.unchecked:
        say(f"not checked: {line}")
    say(f"seal: {found.seal}")


def recompute_command(arguments: Sequence[str]) -> None:
    """``specalign-bench recompute RUN ...``."""
    folders, _ = run_folders("recompute", arguments, RecomputeConfig())
    from specalign.analysis.renew import renew
    from specalign.reports import build_report

    for folder in folders:
        say(build_report(folder, renew(folder)))


def schema_command(arguments: Sequence[str]) -> None:
    """``specalign-bench schema --of record``."""
    config = flags("schema", arguments, SchemaConfig())
    from specalign.run_files import SCHEMAS

    say(json.dumps(SCHEMAS[config.of](), indent=1, sort_keys=True))
