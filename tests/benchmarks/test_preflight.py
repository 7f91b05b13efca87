"""specalign-bench check: a table of findings, exit code 2 where a run could not work, and no weight loaded."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, T5Config

from specalign.benchmarks.cli import main, parse_run
from specalign.benchmarks.preflight import findings
from specalign.benchmarks.runner import run
from specalign.errors import run_cli

FOLDER = Path(__file__).parents[2] / "benchmarks"
Bench = Callable[..., list[str]]


def test_the_table_names_every_check(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "specalign.benchmarks.suite.load_model", lambda *_, **__: pytest.fail("weights were loaded")
    )
    words = ["check", *bench()[1:]]
    assert run_cli("specalign-bench", lambda: main(words)) == 0
    shown = capsys.readouterr().out
    for text in ("target", "copy: same token ids", "small: attention", "memory", "prompts", "data's licence"):
        assert text in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("taken", "verdict"), [(0.1, "ok"), (0.6, "note")])
def test_a_busy_machine_is_noted_before_anything_runs(
    taken: float, verdict: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specalign.benchmarks.preflight.BusyMeter.others", lambda _self: taken)
    checks = {finding.check: finding for finding in findings(parse_run(bench()[1:]), data=True)}
    assert checks["quiet machine"].verdict == verdict
    assert f"{taken:.0%}" in checks["quiet machine"].detail


def test_a_run_on_a_busy_machine_says_so_at_its_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 60.0)
    run(parse_run(bench("--limit", "1", drafters=())[1:]))
    assert "other processes take 60% of the processor" in capsys.readouterr().err


def test_a_check_that_fails_is_exit_code_2(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", *bench("--data.document", "title", drafters=("foreign",))[1:]]
    assert run_cli("specalign-bench", lambda: main(words)) == 2
    shown = capsys.readouterr()
    table = " ".join(
        re.sub("[│┃|]", " ", shown.out).split()
    )  # where lines break depends on the length of paths
    assert "id 3 is 'w59'" in table
    assert "no column 'title'" in table
    (line,) = shown.err.splitlines()
    assert "2 of" in line
    assert "foreign: same token ids, rows; see the table" in line


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_suite_checks_and_starts(path: Path, bench: Bench, tmp_path: Path) -> None:
    """With tiny models and data of its own in the place of what it names; one prompt."""
    words = [*bench("--limit", "1", "--data.category", "", drafters=("small",))[1:], "--suite", str(path)]
    config = parse_run(words)
    assert {finding.verdict for finding in findings(config, data=True)} <= {"ok", "note"}
    result = run(config)
    assert result.status == "complete"
    assert result.n_failed == 0


def test_contexts_that_end_decoding_early_are_noted(bench: Bench) -> None:
    checks = {finding.check: finding for finding in findings(parse_run(bench()[1:]), data=False)}
    assert checks["context"].verdict == checks["copy: context"].verdict == "note"
    assert "rows" not in checks


def test_models_that_do_not_fit_into_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specalign.models.preflight.device_memory_bytes", lambda _device: 1000)
    checks = {finding.check: finding for finding in findings(parse_run(bench()[1:]), data=False)}
    assert checks["memory"].verdict == "failed"
    assert "choose target.quantization = 4bit" in checks["memory"].detail


def test_an_encoder_decoder_target_is_not_compiled(bench: Bench, models_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    AutoTokenizer.from_pretrained(models_folder / "target").save_pretrained(folder)
    sizes: dict[str, Any] = {"vocab_size": 64, "d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1}
    T5Config(**sizes | {"num_heads": 1, "decoder_start_token_id": 0}).save_pretrained(folder)
    flags = ["--target.model", str(folder), "--decoding.runtime"]
    for runtime, verdict in (("compiled", "failed"), ("eager", "ok")):
        config = parse_run(bench(*flags, runtime, drafters=())[1:])
        checks = {finding.check: finding for finding in findings(config, data=False)}
        assert checks["runtime"].verdict == verdict


def test_a_target_whose_positions_scale_with_the_length_is_refused_where_a_run_could_reach_it(
    bench: Bench, models_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "longrope"
    shutil.copytree(models_folder / "target", folder)
    table = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    scaled = table | {"factor": 2.0, "original_max_position_embeddings": 32}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": scaled}))
    for longest, verdict in (("20", "ok"), ("21", "failed")):
        words = bench("--target.model", str(folder), "--data.max-prompt-tokens", longest, drafters=())
        checks = {finding.check: finding for finding in findings(parse_run(words[1:]), data=False)}
        assert checks["context"].verdict == verdict
    assert "(longrope) beyond 32 tokens, and 33 are asked for" in checks["context"].detail


def test_damaged_weights_are_found_in_their_headers(bench: Bench, models_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(models_folder / "copy", tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    words = bench("--target.model", str(tmp_path / "cut"), drafters=())
    checks = {finding.check: finding for finding in findings(parse_run(words[1:]), data=False)}
    assert checks["weights"].verdict == "failed"
    assert "model.safetensors" in checks["weights"].detail


def test_a_draft_as_long_as_the_context_is_refused(bench: Bench) -> None:
    """It would time a hundred calls first, and then draft nothing."""
    words = bench("--decoding.gammas", "128")[1:]
    finding = {finding.check: finding for finding in findings(parse_run(words), data=False)}["context"]
    assert finding.verdict == "failed"
    assert "a draft of 128 tokens does not fit a context of" in finding.detail
