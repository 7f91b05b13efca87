"""A long job tells how far it is, also where nobody watches a bar."""

import threading

import pytest

from specalign import progress
from specalign.progress import progress_bar


def test_without_a_terminal_lines_go_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = threading.Event()
    monkeypatch.setattr(progress, "EVERY_S", 0.001)
    real = progress.say

    def say(text: object, file: object = None) -> None:
        real(text, file)  # type: ignore[arg-type]
        told.set()

    monkeypatch.setattr(progress, "say", say)
    with progress_bar("decoding [/nope]", 4) as bar:
        bar.advance(1)
        told.clear()
        assert told.wait(60)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1].startswith("decoding [/nope]: 25% after 0 s, about 0 s left")
    assert not [thread for thread in threading.enumerate() if thread.name == progress.THREAD]


def test_a_short_job_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("loading", 2) as bar:
        bar.move_to(2)
        bar.say("a line")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("a line\n", "")
