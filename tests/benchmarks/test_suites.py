"""Every shipped suite loads, and opens with its command, its duration and what to expect."""

from contextlib import suppress
from pathlib import Path

import pytest

from specalign.benchmarks.cli import COMMANDS, main, parse_run
from specalign.benchmarks.config import BenchConfig
from specalign.config import load_config

FOLDER = Path(__file__).parents[2] / "benchmarks"
SUITES = sorted(FOLDER.glob("*.toml"))


def test_suites_are_there() -> None:
    tasks = {"distillspec_xsum", "distillspec_cnn_dailymail", "distillspec_gsm8k"}
    assert {"demo", "cnn_dailymail", "spec_bench"} | tasks <= {path.stem for path in SUITES}


def test_distillspecs_suites_are_as_in_the_paper() -> None:
    for path in FOLDER.glob("distillspec_*.toml"):
        config = load_config(BenchConfig, path)
        assert path.stem == f"distillspec_{config.data.source}"
        assert config.decoding.temperatures == (0.0, 1.0)
        assert config.decoding.gammas == (7,)


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_shipped_suites_load(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("question.jsonl").touch()  # a user's own copy of Spec-Bench
    config = parse_run(["--suite", str(path), "--limit", "3"])
    assert config.target.model
    assert "{document}" in config.data.prompt
    assert config.data.limit == 3
    opening = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"specalign-bench run --suite benchmarks/{path.name} --drafter" in line for line in opening)
    assert any("To stand beside: " in line for line in opening)
    assert any("bout" in line and ("minute" in line or "hour" in line) for line in opening)


def test_a_flag_wins_over_the_suite_and_the_suite_over_the_default() -> None:
    config = parse_run(["--suite", str(FOLDER / "demo.toml"), "--data.limit", "2"])
    assert config.data.limit == 2
    assert config.decoding.gammas == (1, 3)
    assert config.seed == 0
    assert config.output == Path("reports/demo")


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_of_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        main(words)
    shown = capsys.readouterr().out
    assert "usage: specalign-bench" in shown
    if words[0] == "run":
        for text in ("--decoding.gammas", "in tokens", "default: 4", "--suite", "--drafter"):
            assert text in shown
