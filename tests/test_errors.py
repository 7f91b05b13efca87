"""One line and an exit code for a user's mistake; a traceback only for a defect of ours."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from specalign.errors import UserError, run_cli, unknown


def raising(error: BaseException) -> int:
    def main() -> None:
        raise error

    return run_cli("tool", main)


def test_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(UserError("no such\n  file: x")) == 2
    assert capsys.readouterr().err == "tool: error: no such file: x\n"


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt()) == 130
    assert "interrupted" in capsys.readouterr().err


def test_full_disk_is_a_user_error_that_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(OSError(errno.ENOSPC, "No space left on device", "runs/a/model.safetensors")) == 2
    assert capsys.readouterr().err == (
        "tool: error: cannot write runs/a/model.safetensors: No space left on device\n"
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: (folder / "file" / "below").mkdir(), "Not a directory"),
        (lambda folder: (folder / ("n" * 300)).mkdir(), "File name too long"),
        (lambda folder: (folder / "loop").read_text(), "Too many levels of symbolic links"),
        (lambda folder: folder.read_text(), "Is a directory"),
        (lambda folder: (folder / "nowhere" / "x").write_text(""), "No such file or directory"),
        (lambda folder: (folder / "file").mkdir(), "File exists"),
    ],
)
def test_what_the_system_says_of_a_path_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], object], said: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    def main() -> None:
        make(tmp_path)

    assert run_cli("tool", main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tool: error: cannot use {tmp_path}")
    assert line.endswith(said)


def test_no_error_reaches_the_terminal_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(UserError("no such model: \x1b]0;owned\x07\u202egpj")) == 2
    assert capsys.readouterr().err == "tool: error: no such model: \\x1b]0;owned\\x07\\u202egpj\n"


def test_weights_on_a_full_disk_are_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert raising(error) == 2
    assert capsys.readouterr().err.startswith("tool: error: cannot write the weights: ")


@pytest.mark.parametrize(
    "error", [OSError(errno.EINVAL, "Invalid argument"), ZeroDivisionError(), SafetensorError("damaged")]
)
def test_our_own_defects_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        raising(error)


def test_success_is_0() -> None:
    assert run_cli("tool", lambda: None) == 0


def test_unknown_name_guesses_and_lists_the_choices() -> None:
    message = str(unknown("objective", "forwrd_kl", ["tvd", "forward_kl"]))
    assert message == "unknown objective 'forwrd_kl'; did you mean 'forward_kl'? (choices: forward_kl, tvd)"
    assert "did you mean" not in str(unknown("objective", "zzz", ["tvd"]))


def test_what_is_nested_too_deep_for_a_parser_is_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("tool", lambda: json.loads("[" * 10**5)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tool: error: something that was read is nested too deep")
