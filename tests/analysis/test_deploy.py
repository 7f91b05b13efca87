"""The serving command that a run recommends."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specalign.analysis.decision import decide
from specalign.analysis.deploy import Wish, deploy_lines, measured
from specalign.benchmarks.cli import main
from specalign.errors import UserError
from specalign.metrics import METRICS_VERSION
from specalign.results import BenchmarkResult, Interval, LoadRow, ModelInfo, SummaryRow, TimeSplit
from specalign.run_files import write_result
from specalign.text import plain


def row(method: str, gamma: int, speedup: float | None, temperature: float = 0.0) -> SummaryRow:
    return SummaryRow(
        method=method, kind="target" if not gamma else "lookup" if method.endswith("lookup") else "model",
        temperature=temperature, gamma=gamma, rule="greedy", lossless=True,
        n_requested=4, n_effective=4, n_failed=0, tokens_per_s=Interval(20.0), ms_per_token=50.0,
        speedup=None if speedup is None else Interval(speedup), decode_speedup=None,
        time=TimeSplit(0.0, 0.0, 0.0, 0.0),
        speedup_joint=None if speedup is None else Interval(speedup, speedup - 0.1, speedup + 0.1),
    )  # fmt: skip


def result(*rows: SummaryRow, **changes: Any) -> BenchmarkResult:
    made = BenchmarkResult(
        status="complete", suite="demo", command=[], config={}, provenance={"dtype": "torch.float32"},
        metrics_version=METRICS_VERSION, target=ModelInfo("target", "models/the target", 10, 2, 40),
        drafters=[ModelInfo("gkd", "runs/gkd", 5, 1, 20), ModelInfo("sft", "runs/sft", 5, 1, 20, "sft", 8)],
        n_requested=0, n_effective=0, n_failed=0, rows=[row("target", 0, None), *rows],
    )  # fmt: skip
    return replace(made, **changes)


def served(lines: list[str]) -> list[str]:
    (command,) = (line for line in lines if not line.startswith("#"))
    return shlex.split(command)


def test_the_command_has_the_fastest_drafter_and_its_gamma() -> None:
    words = served(deploy_lines(result(row("gkd", 2, 1.3), row("gkd", 4, 1.5), row("sft", 2, 1.4)), Wish()))
    assert words[:5] == ["vllm", "serve", "models/the target", "--dtype", "float32"]
    assert words[5] == "--speculative-config"
    assert json.loads(words[6]) == {
        "method": "draft_model",
        "model": "runs/gkd",
        "num_speculative_tokens": 4,
        "draft_sample_method": "probabilistic",
    }


@pytest.mark.parametrize(("gamma", "n_drafted"), [(4, 4), (8, 6)])
def test_a_parallel_drafter_is_served_as_one(gamma: int, n_drafted: int) -> None:
    parallel = ModelInfo("gkd", "runs/gkd", 5, 1, 20, parallel=6)
    words = served(deploy_lines(result(row("gkd", gamma, 1.5), drafters=[parallel]), Wish()))
    config = json.loads(words[6])
    assert config["method"] == "draft_model"
    assert config["parallel_drafting"] is True
    assert config["num_speculative_tokens"] == n_drafted


@pytest.mark.parametrize(
    ("device", "temperature", "said"), [("cpu", 1.0, True), ("cpu", 0.0, False), ("cuda", 1.0, False)]
)
def test_what_vllm_does_to_sampled_drafts_on_cpus_is_said(device: str, temperature: float, said: bool) -> None:
    made = result(row("gkd", 2, 1.3, temperature), provenance={"hardware": {"device": device}})
    lines = deploy_lines(made, Wish(temperature=temperature))
    assert any("vllm#55005" in line for line in lines) == said


def test_another_drafter_can_be_named_and_a_trimmed_head_is_said() -> None:
    lines = deploy_lines(result(row("gkd", 4, 1.5), row("sft", 2, 1.4)), Wish("sft"))
    assert json.loads(served(lines)[-1])["model"] == "runs/sft"
    assert any("trimmed to 8 rows" in line for line in lines)
    assert exports(lines) == [
        "specalign-train", "export", "runs/sft", "--target", "models/the target", "--output", "runs/sft-served"
    ]  # fmt: skip


def test_a_head_is_served_by_vllm_as_it_lies_and_by_sglang_under_its_names() -> None:
    """A chain of gamma tokens is gamma + 1 to verify in SGLang's count; what leaves a last layer it does not keep."""
    target = ModelInfo("target", "models/the target", 10, 12, 40)
    head = ModelInfo("gkd", "runs/gkd", 5, 1, 20, reads=[2, 6, 9])
    lines = deploy_lines(result(row("gkd", 3, 1.5), target=target, drafters=[head]), Wish())
    assert json.loads(served(lines)[6])["method"] == "eagle3"
    assert exports(lines)[2:] == ["runs/gkd", "--target", "models/the target", "--output", "runs/gkd-sglang"]
    words = shlex.split(lines[-1].removeprefix("# "))
    assert words[:3] == ["python", "-m", "sglang.launch_server"]
    assert dict(zip(words[3::2], words[4::2], strict=True)) == {
        "--model-path": "models/the target",
        "--dtype": "float32",
        "--speculative-algorithm": "EAGLE3",
        "--speculative-draft-model-path": "runs/gkd-sglang",
        "--speculative-num-steps": "3",
        "--speculative-eagle-topk": "1",
        "--speculative-num-draft-tokens": "4",
    }
    last = replace(head, reads=[2, 6, 12])
    refused = deploy_lines(result(row("gkd", 3, 1.5), target=target, drafters=[last]), Wish())
    assert "SGLang does not serve it" in refused[-1]
    assert not exports(refused)


def exports(lines: list[str]) -> list[str]:
    """The words of the export that is advised; none where none is."""
    found = [line.removeprefix("# ") for line in lines if line.startswith("# specalign-train export")]
    return shlex.split(found[0]) if found else []


def test_a_drafter_of_another_width_is_to_be_exported_first() -> None:
    """Qwen2.5-0.5B under Qwen2.5-7B."""
    run = result(
        row("gkd", 4, 1.5),
        target=ModelInfo("target", "big", 10, 2, 40, n_rows=152_064),
        drafters=[ModelInfo("gkd", "small", 5, 1, 20, n_rows=151_936)],
    )
    lines = deploy_lines(run, Wish())
    assert any("refuses a drafter of 151,936 rows under a target of 152,064" in line for line in lines)
    assert exports(lines)[2:5] == ["small", "--target", "big"]
    same = replace(run, drafters=[replace(run.drafters[0], n_rows=152_064)])
    assert not exports(deploy_lines(same, Wish()))
    unrecorded = replace(run, drafters=[replace(run.drafters[0], n_rows=0)])
    assert not exports(deploy_lines(unrecorded, Wish()))


def test_prompt_lookup_is_vllms_ngram_method() -> None:
    config = json.loads(served(deploy_lines(result(row("prompt_lookup", 3, 1.2)), Wish()))[-1])
    assert config["method"] == "ngram"
    assert config["num_speculative_tokens"] == 3


def test_a_copy_that_vllm_does_not_have_is_not_served_as_its_own() -> None:
    lines = deploy_lines(result(row("prompt_lookup", 3, 1.2), row("other_lookup", 5, 1.9)), Wish())
    assert json.loads(served(lines)[-1])["num_speculative_tokens"] == 3
    with pytest.raises(UserError, match="nothing to deploy"):
        deploy_lines(result(row("other_lookup", 5, 1.9)), Wish())


def test_a_drafter_that_does_not_pay_is_not_served() -> None:
    lines = deploy_lines(result(row("gkd", 2, 0.8), row("gkd", 4, 0.7)), Wish())
    assert served(lines) == ["vllm", "serve", "models/the target", "--dtype", "float32"]
    assert lines[-1].startswith("# vllm serve")
    assert '"num_speculative_tokens": 2' in lines[-1]


def test_a_speed_up_that_is_not_shown_is_not_served() -> None:
    """The report says "keep the plain target" of the same rows."""
    doubtful = result(row("gkd", 2, 1.05), row("sft", 2, 1.02))
    assert served(deploy_lines(doubtful, Wish())) == [
        "vllm",
        "serve",
        "models/the target",
        "--dtype",
        "float32",
    ]
    assert any("Keep the plain target" in line for line in deploy_lines(doubtful, Wish()))
    decision = decide(doubtful.rows, 0.0)
    assert decision
    assert not decision.use


def test_what_is_shown_to_be_faster_comes_before_what_only_looks_it() -> None:
    noisy = replace(row("sft", 2, 1.6), speedup_joint=Interval(1.6, 0.9, 2.9))
    both = result(noisy, row("gkd", 4, 1.4))
    assert json.loads(served(deploy_lines(both, Wish()))[-1])["model"] == "runs/gkd"
    decision = decide(both.rows, 0.0)
    assert decision
    assert (decision.use, decision.best.method) == (True, "gkd")


def test_older_definitions_decide_nothing() -> None:
    old = replace(result(row("gkd", 2, 1.5)), metrics_version="3")
    assert any("specalign-bench recompute" in line for line in deploy_lines(old, Wish()))


def test_temperatures_are_chosen_apart() -> None:
    both = result(row("gkd", 4, 1.5), row("gkd", 2, 1.2, 1.0), row("gkd", 4, 1.1, 1.0))
    assert '"num_speculative_tokens": 2' in deploy_lines(both, Wish(temperature=1.0))[-1]
    with pytest.raises(UserError, match=r"temperature 0\.5 \(measured: 0, 1\)"):
        measured(both, Wish(temperature=0.5))


def load(method: str, gamma: int, concurrency: int, speedup: float | None) -> LoadRow:
    return LoadRow(method, gamma, concurrency, 4, 0, 20.0, [1.0] * 3, [1.0] * 3, [1.0] * 3, speedup)


def test_under_load_the_load_test_decides() -> None:
    rows = [load("target", 0, 8, None), load("gkd", 2, 8, 1.1), load("gkd", 4, 8, 0.9), load("gkd", 4, 1, 1.6)]
    both = result(row("gkd", 2, 1.3), row("gkd", 4, 1.5), load=rows)
    lines = deploy_lines(both, Wish(concurrency=8))
    assert json.loads(served(lines)[-1])["num_speculative_tokens"] == 2
    assert "8 requests at a time" in lines[0]
    with pytest.raises(UserError, match=r"3 requests at a time were not measured \(measured: 1, 8\)"):
        deploy_lines(both, Wish(concurrency=3))
    with pytest.raises(UserError, match="load was measured at temperature 0, not 1"):
        deploy_lines(both, Wish(temperature=1.0, concurrency=8))
    with pytest.raises(UserError, match="no load test"):
        deploy_lines(result(row("gkd", 2, 1.3)), Wish(concurrency=8))


def test_what_was_not_measured_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="did you mean 'gkd'"):
        deploy_lines(result(row("gkd", 4, 1.5)), Wish("gdk"))
    with pytest.raises(UserError, match="no speculative row"):
        deploy_lines(result(), Wish())


def test_the_command_line_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(tmp_path, result(row("gkd", 4, 1.5)))
    main(["deploy", str(tmp_path)])
    assert served(capsys.readouterr().out.splitlines())[1] == "serve"


def test_no_name_becomes_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that somebody else made: the script has one command, and runs nothing but it."""
    evil = "x\necho owned; #\x1b]0;owned\x07'\"$(echo owned)"
    for speedup in (1.5, 0.5):
        hostile = result(row(evil, 4, speedup), target=ModelInfo("target", evil, 10, 2, 40))
        write_result(tmp_path, replace(hostile, drafters=[ModelInfo(evil, evil, 5, 1, 20, draft_vocabulary=8)]))
        main(["deploy", str(tmp_path)])
        script = capsys.readouterr().out
        assert plain(script) == script
        ran = subprocess.run(
            ["sh", "-c", f"vllm() {{ printf '%s|' called; }}\n{script}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout == "called|"
