"""Objectives over training seeds: simulated runs with known differences, and the command on real files."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from specalign.analysis.seeds import compare, grouped, lines, parse_groups, require_same_prompts
from specalign.analysis.summary import summarise
from specalign.benchmarks import runner
from specalign.benchmarks.cli import main, parse_run
from specalign.errors import UserError
from specalign.records import GenerationRecord, StepTrace
from specalign.results import BenchmarkResult, ModelInfo
from specalign.run_files import RunFiles

N_PROMPTS, N_TOKENS = 20, 30


def record(method: str, gamma: int, prompt: int, seconds: float) -> GenerationRecord:
    steps = StepTrace(
        [gamma], [gamma], [gamma], [gamma + 1], [[0.5] * gamma], [0.0], [seconds], [0.0]
    )  # fmt: skip
    return GenerationRecord(
        method, f"p{prompt}", "", 0, prompt, 1.0, 0, 1.0, gamma, "token", True, 0, 5, "ok",
        token_ids=list(range(N_TOKENS)), steps=steps, decode_s=seconds, wall_s=seconds,
    )  # fmt: skip


def simulated(speeds: dict[str, float], machine: float, seed: int) -> RunFiles:
    """A run on a machine of its own speed: each drafter's speed-up over the plain target is given."""
    generator = np.random.default_rng(seed)
    lengths = np.linspace(1, 3, N_PROMPTS)
    records = [
        record(
            name,
            0 if name == "target" else 3,
            prompt,
            machine * lengths[prompt] / speed * generator.lognormal(0, 0.02),
        )
        for name, speed in {"target": 1.0, **speeds}.items()
        for prompt in range(N_PROMPTS)
    ]
    drafters = [
        ModelInfo(name, name, 1, 1, 1, name.split("-")[0], training={"weights_sha256": f"{seed}{name}"})
        for name in speeds
    ]
    result = BenchmarkResult(
        "complete", "s", [], {}, {"prompts_sha256": "x"}, "1", ModelInfo("target", "m", 1, 1, 1), drafters,
        len(records), len(records), 0, summarise(records),
    )  # fmt: skip
    return RunFiles(result, records, [])


def test_seeds_in_one_run_or_in_several_runs_are_one_side() -> None:
    """gkd is 20 % faster; the second machine is three times slower, which its own plain target takes out."""
    runs = [
        simulated({"gkd-0": 1.22, "gkd-1": 1.18, "sft-0": 1.02}, machine=1, seed=0),
        simulated({"gkd-0": 1.20, "sft-0": 0.98}, machine=3, seed=1),
    ]
    groups = grouped(runs, {})
    assert groups == {"gkd": [(0, "gkd-0"), (0, "gkd-1"), (1, "gkd-0")], "sft": [(0, "sft-0"), (1, "sft-0")]}
    speed = next(one for one in compare(runs, groups) if one.figure == "speed")
    assert speed.n_seeds == (3, 2)
    assert speed.found.ratio.value == pytest.approx(1.2, rel=0.02)
    assert speed.p_value < 0.05
    text = "\n".join(lines(compare(runs, groups)))
    assert "gkd (3 seeds) against sft (2 seeds): 1." in text
    assert f"All {len(compare(runs, groups))} comparisons are corrected together" in text


def test_without_a_difference_the_verdict_says_so() -> None:
    runs = [simulated({"gkd-0": 1.1, "gkd-1": 1.3, "sft-0": 1.3, "sft-1": 1.1}, machine=1, seed=2)]
    text = "\n".join(lines(compare(runs, grouped(runs, {}))))
    assert "no significant difference" in text


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["gkd"], "--group takes NAME=DRAFTER"),
        (["gkd="], "--group takes NAME=DRAFTER"),
        (["gkd=gkd-0,nobody", "sft=sft-0"], "no drafter 'nobody' in these runs"),
        (["gkd=gkd-0", "sft=sft-0"], "one of them with two seeds or more; found: gkd with 1, sft with 1"),
    ],
)
def test_wrong_groups_are_refused(groups: list[str], message: str) -> None:
    runs = [simulated({"gkd-0": 1.2, "gkd-1": 1.2, "sft-0": 1.0}, machine=1, seed=0)]
    with pytest.raises(UserError, match=message):
        grouped(runs, parse_groups(groups))


def test_runs_of_other_prompts_are_refused() -> None:
    runs = [simulated({"gkd-0": 1.2}, machine=1, seed=0), simulated({"gkd-0": 1.2}, machine=1, seed=1)]
    other = dataclasses.replace(runs[1].result, provenance={"prompts_sha256": "y"})
    with pytest.raises(UserError, match="prompts_sha256 differ"):
        require_same_prompts([runs[0], dataclasses.replace(runs[1], result=other)])


def test_the_command(
    bench: Callable[..., list[str]], models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models_folder / "small", tmp_path / "twin")
    words = bench("--include", "--decoding.temperatures", "1", "--drafter", f"twin={tmp_path / 'twin'}")
    runner.run(parse_run(words[1:]))
    run = str(tmp_path / "run")
    with pytest.raises(UserError, match="two have the same weights"):
        main(["seeds", run, "--group", "a=small,twin", "b=copy"])
    main(["seeds", run, "--group", "a=small,copy", "b=twin"])
    assert "a (2 seeds) against b (1 seed)" in capsys.readouterr().out
