"""A training run never removes what it did not write, and never what it was given."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from specalign import folders
from specalign.config import write_config
from specalign.errors import UserError, run_cli
from specalign.training import folder
from specalign.training.cli import main
from specalign.training.config import TrainConfig
from specalign.training.session import train_all

Tiny = Callable[..., TrainConfig]


def test_every_file_of_a_run_is_listed(tiny: Tiny) -> None:
    """So --overwrite leaves nothing behind, checkpoints and trackers' files included."""
    config = tiny("gkd", logging={"trackers": ("tensorboard",)}, student={"draft_vocabulary": 40})
    train_all([config])
    main(["plot", str(config.output)])
    assert (config.output / "tensorboard").is_dir()
    folders.clear(config.output, {})
    assert folders.is_empty(config.output)


def test_overwrite_keeps_foreign_files(tiny: Tiny) -> None:
    config = tiny("sft")
    train_all([config])
    for name in ("thesis.tex", "checkpoints/notes.txt"):
        (config.output / name).write_text("years of work")
    train_all([replace(config, overwrite=True)])
    for name in ("thesis.tex", "checkpoints/notes.txt"):
        assert (config.output / name).read_text() == "years of work"


def test_a_student_that_is_the_output_is_never_removed(tiny: Tiny) -> None:
    config = tiny("sft")
    train_all([config])
    again = replace(config, student=replace(config.student, model=str(config.output)), overwrite=True)
    with pytest.raises(UserError, match=r"student\.model is .* which --overwrite would delete"):
        train_all([again])
    assert (config.output / "model.safetensors").is_file()
    with pytest.raises(UserError, match=r"student\.model = .*; choose another --output$"):
        train_all([replace(again, overwrite=False)])


def test_a_recipe_that_was_given_is_never_changed(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with a recipe is not a run, and a run's own recipe, which may be commented by now, is not replaced."""
    config = tiny("sft")
    config.output.mkdir()
    recipe = config.output / "recipe.toml"
    write_config(recipe, config)
    recipe.write_text("# a thought\n" + recipe.read_text())
    words = ["--recipe", str(recipe), "--overwrite"]
    assert run_cli("t", lambda: main(words)) == 2
    assert run_cli("t", lambda: main(words[:2])) == 2
    assert "is not a training run; choose another --output" in capsys.readouterr().err
    assert recipe.read_text().startswith("# a thought")

    recipe.rename(config.output.parent / "mine.toml")
    train_all([config])
    recipe.write_text("# a thought\n" + recipe.read_text())
    assert run_cli("t", lambda: main(words)) == 2
    assert "--recipe is" in capsys.readouterr().err
    assert run_cli("t", lambda: main(words[:2])) == 0
    assert recipe.read_text().startswith("# a thought")


def test_a_second_command_in_the_same_folder_is_refused(tiny: Tiny) -> None:
    config = tiny("sft")
    taken = rf"in use by specalign-train \(pid {os.getpid()} on"
    with folders.hold(config.output, "specalign-train"), pytest.raises(UserError, match=taken):
        train_all([config])
    assert not Path(config.output).exists()


@pytest.mark.parametrize("content", ["[" * 10**5, "[]", "{", "\xff"])
def test_damaged_files_of_a_run_are_named(content: str, tmp_path: Path) -> None:
    for name, read in ((folder.PROVENANCE, folder.read_provenance), (folder.LOG, folder.read_log)):
        (tmp_path / name).write_text(content + "\n", encoding="latin1")
        if (name, content) != (folder.LOG, "[]"):
            with pytest.raises(UserError, match=rf"{name} is damaged"):
                read(tmp_path)
