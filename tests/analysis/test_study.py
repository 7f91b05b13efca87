"""The study's command: what it cannot compare it refuses by name, and hypotheses are read from the run's folder."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from specalign.analysis.study import TRAINING, held_out, read_curves, read_study
from specalign.benchmarks.cli import main
from specalign.errors import UserError
from specalign.run_files import PROBES_FILE, RECORDS_FILE, RESULT_FILE, read_result, write_result
from tests.test_curves import log

REPORTS = Path(__file__).parents[2] / "reports"
STARTS = REPORTS / "2026-11-28_head-starts_cpu-2core"
DEMO = REPORTS / "2026-11-24_demo-packed_cpu-2core"
STUDY = REPORTS / "2026-11-25_study-long-seeds_cpu-2core"


def test_a_run_without_seeds_is_refused() -> None:
    with pytest.raises(UserError, match="no objective with two seeds"):
        read_study(DEMO)


def test_an_unknown_baseline_and_a_missing_folder_are_refused() -> None:
    with pytest.raises(UserError, match="no drafter of the objective 'dpo'"):
        read_study(STUDY, "dpo")
    with pytest.raises(UserError, match="no such folder: runs/nowhere"):
        main(["study", str(STUDY), "--training", "runs/nowhere"])


def test_a_study_needs_no_prompt_lookup_beside_its_drafters(tmp_path: Path) -> None:
    run = shutil.copytree(STARTS, tmp_path / "run")
    main(["study", str(run), "--baseline", "head_jsd"])
    answer = (run / "answer.md").read_text(encoding="utf-8")
    assert "head_jsd_random_start" in answer.replace("\\", "")
    assert "prompt_lookup" not in answer.replace("\\", "")


def copied(folder: Path, *without: str) -> Path:
    """The study's files, but those."""
    folder.mkdir(exist_ok=True)
    for path in STUDY.iterdir():
        if path.name.split(".gz")[0] in {RECORDS_FILE, PROBES_FILE, RESULT_FILE, TRAINING} - set(without):
            shutil.copy(path, folder)
    return folder


def test_nothing_is_written_before_all_is_checked(tmp_path: Path) -> None:
    """A run of single seeds, and one whose training there is not, are left as they were."""
    run = copied(tmp_path / "run", TRAINING)
    before = sorted(path.name for path in run.iterdir())
    for seed, status in (("seed-0", "complete"), ("seed-1", "running")):
        training_run(tmp_path / "runs" / "jsd" / seed, status)
    for words, message in (
        ([], r"no such file: .*training\.json; --training FOLDER makes it"),
        (["--training", str(tmp_path)], "has no complete training runs OBJECTIVE/seed-N"),
        (["--training", str(tmp_path / "runs")], "compares two objectives at least; trained: jsd"),
        (["--training", str(tmp_path / "runs"), "--baseline", "dpo"], "no drafter of the objective 'dpo'"),
    ):
        with pytest.raises(UserError, match=message):
            main(["study", str(run), *words])
        assert sorted(path.name for path in run.iterdir()) == before
    demo = tmp_path / "demo"
    demo.mkdir()
    for path in DEMO.glob("*.json*"):
        shutil.copy(path, demo)
    before = sorted(path.name for path in demo.iterdir())
    with pytest.raises(UserError, match="no objective with two seeds"):
        main(["study", str(demo), "--training", str(tmp_path / "runs")])
    assert sorted(path.name for path in demo.iterdir()) == before


def training_run(folder: Path, status: str) -> None:
    log(folder, [0.1, 0.3])
    (folder / "provenance.json").write_text(json.dumps({"status": status}))


def test_a_training_run_that_is_not_complete_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(tmp_path / "run", TRAINING)
    for name, status in (("jsd/seed-0", "complete"), ("jsd/seed-1", "running"), ("kl/seed-0", "complete")):
        training_run(tmp_path / "runs" / name, status)
    main(["study", str(run), "--training", str(tmp_path / "runs")])
    assert "left out, their training is not complete: jsd/seed-1" in capsys.readouterr().err
    assert {arm: list(seeds) for arm, seeds in read_curves(run).items()} == {
        "jsd": ["seed-0"],
        "kl": ["seed-0"],
    }
    assert (run / "answer.md").is_file()


@pytest.mark.parametrize("command", ["study", "seeds"])
def test_a_run_that_is_not_complete_is_refused(command: str, tmp_path: Path) -> None:
    run = copied(tmp_path / "run")
    result = read_result(run)
    write_result(run, dataclasses.replace(result, status="running", n_effective=0, rows=[]))
    n_made = result.n_effective + result.n_failed
    with pytest.raises(
        UserError, match=f"is interrupted: {n_made} of {result.n_requested} generations are there"
    ):
        main([command, str(run)])


def test_hypotheses_with_a_misspelt_key_are_refused(tmp_path: Path) -> None:
    copied(tmp_path)
    (tmp_path / "hypotheses.toml").write_text('baselin = "jsd"\n')
    with pytest.raises(UserError, match=r"hypotheses\.toml: baselin"):
        read_study(tmp_path)


def test_apart_means_every_seed_above_every_other() -> None:
    curves = {arm: {str(i): [{"alpha": value}] for i, value in enumerate(ends)} for arm, ends in ENDS.items()}
    found = held_out(curves, "alpha")
    assert (found.arm, found.closest, found.others_best, found.apart) == ("best", "lucky", 0.5, False)
    del curves["lucky"]
    assert held_out(curves, "alpha").apart


ENDS = {"best": [0.45, 0.55], "lucky": [0.5, 0.1], "last": [0.2, 0.3]}
