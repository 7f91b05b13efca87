"""The study's command: what it cannot compare it refuses by name, and hypotheses are read from the run's folder."""

import shutil
from pathlib import Path

import pytest

from specalign.analysis.study import held_out, read_study
from specalign.benchmarks.cli import main
from specalign.errors import UserError
from specalign.run_files import PROBES_FILE, RECORDS_FILE, RESULT_FILE

REPORTS = Path(__file__).parents[2] / "reports"
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
    with pytest.raises(UserError, match=r"no such file: .*training\.json; --training FOLDER makes it"):
        main(["study", str(DEMO)])


def test_hypotheses_with_a_misspelt_key_are_refused(tmp_path: Path) -> None:
    for path in STUDY.iterdir():
        if path.name.split(".gz")[0] in (RECORDS_FILE, PROBES_FILE, RESULT_FILE, "training.json"):
            shutil.copy(path, tmp_path)
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
