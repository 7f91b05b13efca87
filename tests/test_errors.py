"""One line and an exit code for a user's mistake; a traceback only for a defect of ours."""

import errno

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
