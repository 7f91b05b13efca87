"""Every shipped suite loads, and opens with its command, its duration and what to expect."""

from contextlib import suppress
from pathlib import Path

import pytest

from specalign.benchmarks.cli import COMMANDS, main, parse_run
from specalign.benchmarks.config import BenchConfig, check
from specalign.config import load_config

FOLDER = Path(__file__).parents[2] / "benchmarks"
SUITES = sorted(FOLDER.glob("*.toml"))


def test_suites_are_there() -> None:
    assert {"demo", "cnn_dailymail"} <= {path.stem for path in SUITES}


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_shipped_suites_load(path: Path) -> None:
    config = load_config(BenchConfig, path)
    check(config)
    assert config.target.model
    opening = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"specalign-bench run --suite benchmarks/{path.name} --drafter" in line for line in opening)
    assert any("bout" in line and ("minute" in line or "hour" in line) for line in opening)


def test_a_flag_wins_over_the_suite_and_the_suite_over_the_default() -> None:
    config = parse_run(["--suite", str(FOLDER / "demo.toml"), "--data.limit", "2"])
    assert config.data.limit == 2
    assert config.decoding.gammas == (3,)
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
