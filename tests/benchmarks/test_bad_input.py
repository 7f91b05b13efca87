"""Every mistake of a user is one clear line and exit code 2, through the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from specalign.benchmarks.cli import main
from specalign.errors import run_cli

Bench = Callable[..., list[str]]


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """complaint(words) -> the one line that the command prints before it exits with 2."""

    def run(words: list[str]) -> str:
        assert run_cli("specalign-bench", lambda: main(words)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


Complaint = Callable[[list[str]], str]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--drafter nonsense", "--drafter takes NAME=PATH, not 'nonsense'"),
        ("--drafter a=", "--drafter takes NAME=PATH"),
        ("--drafter a=x a=y", "the name 'a' is taken"),
        ("--drafter target=x", "the name 'target' is taken"),
        ("--drafter prompt_lookup=x", "the name 'prompt_lookup' is taken"),
        ("--drafter a=./nowhere", "no such model folder: ./nowhere"),
        ("--include medusa", "unknown drafter 'medusa'"),
        ("--device cuda:99", "'cuda:99' asked for, but this machine has"),
        ("--device tpu9x", "unknown device 'tpu9x'"),
        ("--decoding.gammas 0", "decoding.gammas must be at least 1"),
        ("--decoding.temperatures -1", "decoding.temperatures must be at least 0"),
        ("--decoding.top-p 0", "decoding.top_p"),
        ("--decoding.rule greed", "unknown verification rule 'greed'"),
        ("--decoding.gamas 3", "did you mean --decoding.gammas"),
        ("--seed many", "seed"),
        ("--data.source nothing.jsonl", "no such data file: nothing.jsonl"),
        ("--data.document title", "title"),
        ("--data.category sports", "no category 'sports'"),
        ("--data.prompt summarise", "the prompt has no {document}"),
        ("--target.model ./missing", "no such model folder: ./missing"),
    ],
)
def test_bad_flags(bench: Bench, complaint: Complaint, flags: str, message: str) -> None:
    assert message in complaint(bench(*flags.split(), drafters=()))


def test_a_drafter_with_another_tokenizer(bench: Bench, complaint: Complaint) -> None:
    line = complaint(bench(drafters=("foreign",)))
    assert "different tokenizers: id 3 is 'w59'" in line
    assert "drafter 'foreign'" in line


def test_an_empty_data_set(bench: Bench, complaint: Complaint, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    assert "is empty" in complaint(bench("--data.source", str(tmp_path / "none.jsonl")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gamma = 3", "unknown key 'gamma'"),
        ("[decoding]\ngama = [3]", "unknown key 'decoding.gama'"),
        ('[decoding]\ngammas = "three"', "decoding.gammas"),
        ("[decoding", "is not valid TOML"),
    ],
)
def test_bad_suite_files(complaint: Complaint, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "suite.toml").write_text(text)
    assert message in complaint(["run", "--suite", str(tmp_path / "suite.toml")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rum", "unknown command 'rum'; did you mean 'run'?"),
        ("run --suite nowhere.toml", "no such file: nowhere.toml"),
        ("run --suite", "suite"),
        ("report", "report takes one run folder"),
        ("report nowhere", "no such run folder: nowhere"),
        ("explain", "explain takes one run folder"),
        ("plan", "plan needs --target-ms (for speed-ups) or --deviation (for prompts), above 0"),
        ("plan --target-ms 20 --verify-ms 25 --alpha 2", "alpha must be at most 1, not 2.0"),
        ("plan --target-ms 20 --verify-ms 25 --gamma 0", "gamma must be at least 1, not 0"),
        ("compare nowhere", "no such run folder: nowhere"),
    ],
)
def test_bad_commands(complaint: Complaint, words: str, message: str) -> None:
    assert message in complaint(words.split())


def test_a_folder_of_something_else_is_left_alone(bench: Bench, complaint: Complaint, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    assert "holds no benchmark run" in complaint(bench())
    assert "no run of specalign listed" in complaint(bench("--overwrite"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]
