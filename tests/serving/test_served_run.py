"""A suite on (stand-ins of) vLLM servers: the same files, with what the counters give and None for the rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from specalign.analysis.consistency import unlike_its_plan
from specalign.analysis.recompute import untrue_figures
from specalign.benchmarks import served
from specalign.benchmarks.cli import main, parse_run
from specalign.benchmarks.served import run_served
from specalign.errors import UserError
from specalign.results import BenchmarkResult, SummaryRow
from specalign.run_files import read_run
from specalign.serving.environment import PYTHON_VARIABLE, START_VARIABLE
from specalign.serving.server import LOST, _last_error, serving
from tests.decoding.kinds import tiny_head
from tests.serving.fake_vllm import Fake

Serve = Callable[[Fake], str]
PythonOf = Callable[[str], str]


def flags(suite_flags: list[str], output: Path, *more: str) -> list[str]:
    return [*suite_flags, "--output", str(output / "run"), *more]


def endpoints(serve: Serve, gamma: int = 3) -> list[str]:
    return ["--endpoint", f"target={serve(Fake())}", f"small={serve(Fake(gamma=gamma))}"]


def drafted(result: BenchmarkResult) -> SummaryRow:
    (row,) = (row for row in result.rows if row.method == "small")
    return row


def test_our_own_servers_and_running_ones_give_the_same_figures(
    suite_flags: list[str], serve: Serve, vllm_python: PythonOf, tmp_path: Path
) -> None:
    own = run_served(parse_run(flags(suite_flags, tmp_path / "a", "--engine-python", vllm_python("0.32.0"))))
    running = run_served(parse_run(flags(suite_flags, tmp_path / "b", *endpoints(serve))))
    for result in (own, running):
        row = drafted(result)
        assert (result.n_effective, result.n_failed) == (8, 0)
        assert row.exact_match_target == 1
        # 12 tokens: 1, then drafts that accept 2, 0, 1, 2, 0, 1 of 3 and emit one more; the last one's lies beyond
        assert row.alpha_counted is not None
        assert row.alpha_counted.value == pytest.approx(5 / (6 + 3 + 2 - 1))
        assert row.tau is not None
        assert row.tau.value == pytest.approx(11 / 6)
        assert row.survival_by_position == pytest.approx([3 / 6, 2 / 6, 0])
        assert result.provenance["packages"]["vllm"] == "0.32.0"


def test_what_vllm_does_not_give_is_none_and_every_figure_follows_from_the_records(
    suite_flags: list[str], serve: Serve, tmp_path: Path
) -> None:
    plain = Fake()
    urls = ["--endpoint", f"target={serve(plain)}", f"small={serve(Fake(gamma=3))}"]
    run_served(parse_run(flags(suite_flags, tmp_path, *urls)))
    assert plain.ends
    assert all(None not in sampling.values() for sampling in plain.sampling)  # nothing from generation_config
    assert {sampling["repetition_penalty"] for sampling in plain.sampling} == {1.0}
    assert all(ends == [2] for ends in plain.ends)
    run = read_run(tmp_path / "run")
    row = drafted(run.result)
    assert row.alpha_expected is row.c is row.verify_ratio is row.latency_p50_ms is None
    assert row.time.draft_ms is row.time.verify_ms is None
    assert untrue_figures(run) == []
    assert all(record.steps is None for record in run.records)
    checks = {check.name: check for check in run.result.checks}
    assert checks["token accounting"].passed
    assert checks["lossless"].passed


def test_counters_that_others_moved_are_noticed(suite_flags: list[str], serve: Serve, tmp_path: Path) -> None:
    config = parse_run(flags(suite_flags, tmp_path, *endpoints(serve)))
    result = run_served(config)
    run = read_run(tmp_path / "run")
    first = next(record for record in run.records if record.counts)
    assert first.counts is not None
    moved = replace(first, counts=replace(first.counts, n_drafts=first.counts.n_drafts + 5))
    from specalign.analysis.verdict import trust_checks

    checks = {check.name: check for check in trust_checks(result, [moved, *run.records], result.rows)}
    assert checks["token accounting"].passed is False
    assert "did others use the server?" in checks["token accounting"].detail


def test_the_load_table_and_the_report(
    suite_flags: list[str], serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", *flags(suite_flags, tmp_path, *endpoints(serve), "--concurrency", "1", "4")])
    load = read_run(tmp_path / "run").result.load
    assert [(row.method, row.concurrency, row.n_requests) for row in load] == [
        ("target", 1, 4), ("target", 4, 8), ("small", 1, 4), ("small", 4, 8),
    ]  # fmt: skip
    first = load[2]
    assert first.decode_speedup is not None
    assert len(first.ttft_ms) == len(first.tpot_ms) == 3
    report = (tmp_path / "run" / "report.md").read_text()
    assert "## Under load" in report
    assert "vLLM" in report


def test_conversations_are_served_turn_by_turn(suite_flags: list[str], serve: Serve, tmp_path: Path) -> None:
    data = tmp_path / "talks.jsonl"
    data.write_text("".join(json.dumps({"turns": [f"w{n}", f"w{n + 9}"]}) + "\n" for n in range(3)))
    more = ["--data.source", str(data), "--data.split", "all", "--data.prompt", "document", "--limit", "0"]
    run_served(parse_run(flags(suite_flags, tmp_path, *endpoints(serve), *more)))
    run = read_run(tmp_path / "run")
    assert [record.turn for record in run.records] == [0, 1] * 3 * 2
    for first, second in zip(run.records[::2], run.records[1::2], strict=True):
        assert (first.prompt_id, first.method) == (second.prompt_id, second.method)
        assert second.n_prompt_tokens > first.n_prompt_tokens + len(first.token_ids)
    assert unlike_its_plan(run) == untrue_figures(run) == []


def test_an_interrupted_run_goes_on(
    suite_flags: list[str], serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_run(flags(suite_flags, tmp_path, *endpoints(serve)))
    real, made = served.complete, []

    def stopping(*arguments: object) -> object:
        made.append(arguments)
        if len(made) == 4:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(served, "complete", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_served(config)
    assert read_run(tmp_path / "run").result.status == "interrupted"
    monkeypatch.setattr(served, "complete", real)
    assert run_served(config).n_effective == 8
    assert len({record.order for record in read_run(tmp_path / "run").records}) == 8


def test_a_refused_prompt_is_a_failed_record(suite_flags: list[str], serve: Serve, tmp_path: Path) -> None:
    urls = [f"target={serve(Fake(refused=3 + 7))}", f"small={serve(Fake(gamma=3))}"]
    result = run_served(parse_run(flags(suite_flags, tmp_path, "--endpoint", *urls)))
    assert result.n_failed == 1
    (failed,) = (record for record in read_run(tmp_path / "run").records if record.status == "failed")
    assert "the prompt is refused" in failed.error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--endpoint", "small={plain}"], "does not draft: it is not 'small'"),
        (["--endpoint", "target={drafting}"], "drafts: it is not 'target'"),
        (["--endpoint", "smal={drafting}"], "did you mean 'small'"),
        (["--endpoint", "http://127.0.0.1:9"], "--endpoint takes NAME=URL"),
        (["--endpoint", "target=http://127.0.0.1:9"], "no server answers"),
        (["--decoding.rule", "block"], "vLLM has its own rule"),
        (["--engine", "own", "--concurrency", "4"], "need --engine vllm"),
        ([], "name vLLM's Python by --engine-python"),
    ],
)
def test_mistakes_are_one_clear_line(
    suite_flags: list[str], serve: Serve, tmp_path: Path, more: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    urls = {"plain": serve(Fake()), "drafting": serve(Fake(gamma=3))}
    with pytest.raises(UserError, match=message):
        run_served(parse_run(flags(suite_flags, tmp_path, *(word.format(**urls) for word in more))))


@pytest.mark.parametrize("masked", [True, False])
def test_a_drafter_with_a_mask_token_is_served_as_one_that_drafts_in_parallel(
    suite_flags: list[str], vllm_python: PythonOf, tmp_path: Path, masked: bool
) -> None:
    (small,) = (Path(word.removeprefix("small=")) for word in suite_flags if word.startswith("small="))
    folder = shutil.copytree(small, tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    more = {"pard_token": 63, "pard_k": 3} if masked else {}
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    words = [word.replace(str(small), str(folder)) for word in suite_flags]
    result = run_served(parse_run(flags(words, tmp_path, "--engine-python", vllm_python("0.32.0"))))
    told = (tmp_path / "run" / "vllm_small_3.log").read_text().splitlines()
    (line,) = (line for line in told if line.startswith("speculative config:"))
    assert ("parallel_drafting" in json.loads(line.partition(":")[2])) == masked
    assert [info.parallel for info in result.drafters] == [3 if masked else 0]
    assert drafted(result).n_effective == 4


def test_more_tokens_than_a_parallel_drafter_was_trained_to_draft_are_refused(
    suite_flags: list[str], serve: Serve, vllm_python: PythonOf, tmp_path: Path
) -> None:
    """Before a server starts; of a running one by what it says of itself."""
    (small,) = (Path(word.removeprefix("small=")) for word in suite_flags if word.startswith("small="))
    folder = shutil.copytree(small, tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pard_token": 63, "pard_k": 2}))
    words = [word.replace(str(small), str(folder)) for word in suite_flags]
    running = [f"--endpoint=target={serve(Fake())}", f"--endpoint=small={serve(Fake(gamma=3))}"]
    for more in (["--engine-python", vllm_python("0.32.0")], running):
        with pytest.raises(
            UserError, match="'small' was trained to draft 2 tokens in one call, and vLLM would draft 3"
        ):
            run_served(parse_run(flags(words, tmp_path, *more)))
        assert not (tmp_path / "run").exists()


def test_a_server_that_does_not_start_says_why(
    suite_flags: list[str], vllm_python: PythonOf, tmp_path: Path
) -> None:
    other = [word.replace("/small", "/missing") for word in suite_flags]
    config = parse_run(flags(other, tmp_path, "--engine-python", vllm_python("0.32.0")))
    with pytest.raises(UserError, match="vLLM did not start: OSError: missing is not a local folder"):
        run_served(config)


def test_why_a_server_refuses_its_arguments_is_in_the_line_after_the_error(tmp_path: Path) -> None:
    """As vLLM 0.32 says it of a drafter of another width."""
    log = tmp_path / "log"
    log.write_text(
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for SpeculativeConfig\n"
        "  Value error, Target and draft model should have the same vocabulary size. [type=value_error, input=1]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error\n"
    )
    assert _last_error(log) == "Value error, Target and draft model should have the same vocabulary size."


def test_sampled_drafts_are_refused_where_vllm_does_not_verify_them(
    suite_flags: list[str], tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in *spread*) echo "{LOST}";; *) echo 0.32.0;; esac\n')
    python.chmod(0o755)
    words = flags(suite_flags, tmp_path, "--engine-python", str(python), "--decoding.temperatures")
    served._engine(parse_run([*words, "0"]))
    with pytest.raises(UserError, match=r"vllm#55005.*temperatures 0.*mend_vllm"):
        served._engine(parse_run([*words, "0", "1"]))


def test_the_mend_of_vllm_spreads_temperatures_over_drafted_tokens(tmp_path: Path) -> None:
    flawed = "import torch\n\n\ndef _expand_kernel_impl(output, *_more):\n    output.clone()\n"
    path = tmp_path / "vllm" / "utils" / "cpu_triton_utils.py"
    path.parent.mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").touch()
    path.write_text(flawed)
    for _ in range(2):
        mend = [sys.executable, str(Path(__file__).with_name("mend_vllm.py"))]
        subprocess.run(mend, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert path.read_text().count("def _expand_kernel_impl(") == 2
    found: dict[str, Any] = {}
    exec(path.read_text(), found)  # noqa: S102
    spread = torch.zeros(6)
    found["_expand_kernel_impl"](spread, torch.tensor([0.5, 0.0, 2.0]), torch.tensor([2, 5, 6]), 0, 1)
    assert spread.tolist() == [0.5, 0.5, 1, 1, 1, 2]


def test_the_wait_for_a_server_is_the_users_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = tmp_path / "python"
    late.write_text("#!/bin/sh\nexec sleep 60\n")
    late.chmod(0o755)
    for told, said in (
        ("0.1", "did not answer within 0.1 s"),
        ("soon", "seconds above 0, not 'soon'"),
        ("0", "'0'"),
    ):
        monkeypatch.setenv(START_VARIABLE, told)
        with pytest.raises(UserError, match=said) as error, serving(str(late), [], tmp_path / "log"):
            pass
        assert START_VARIABLE in str(error.value)


def test_a_head_is_served_as_one(suite_flags: list[str], vllm_python: PythonOf, tmp_path: Path) -> None:
    """The server refuses a head by any other method, and a model by a head's."""
    small = suite_flags[suite_flags.index("--drafter") + 1].removeprefix("small=")
    config = AutoConfig.from_pretrained(small, num_hidden_layers=2)
    target = LlamaForCausalLM(config)
    for name, model in (("target", target), ("head", tiny_head(target, (0, 1, 2)))):
        model.save_pretrained(tmp_path / name)
    AutoTokenizer.from_pretrained(small).save_pretrained(tmp_path / "target")
    words = ["--target.model", str(tmp_path / "target"), "--engine-python", vllm_python("0.32.0")]
    named = ["--drafter", f"head={tmp_path / 'head'}"]
    result = run_served(parse_run(flags(suite_flags, tmp_path, *words, *named)))
    assert (result.n_effective, result.n_failed) == (12, 0)
    (info,) = (info for info in result.drafters if info.name == "head")
    assert info.reads == [0, 1, 2]
