"""What others wrote shows on a terminal and in a report, and does nothing there."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from specalign.terminal import say, say_script, show
from specalign.text import one_line, plain

HOSTILE = "\x1b]0;owned\x07\u202egpj\r\x9b2J\ud800"


@given(st.text())
def test_what_is_left_neither_controls_nor_turns_nor_hides(text: str) -> None:
    shown = plain(text)
    for character in set(shown) - {"\n", "\t"}:
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp"), hex(ord(character))
        assert unicodedata.bidirectional(character) not in (
            "RLE",
            "LRE",
            "RLO",
            "LRO",
            "PDF",
            "RLI",
            "LRI",
            "FSI",
            "PDI",
        )
    assert plain(shown) == shown
    assert len(one_line(text).splitlines()) <= 1
    shown.encode()


def test_ordinary_text_is_left_alone() -> None:
    text = "Grüße, γ = 4, 数据, میخواهم\u200c, 👩\u200d🔬\n\tnext"
    assert plain(text) == text


def test_prints_and_tables_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"name {HOSTILE}")
    table = Table("column", title=f"title {HOSTILE}")
    table.add_row(f"[/nope] [bold]{HOSTILE}")
    show(table)
    shown = capsys.readouterr().out
    assert "[/nope] [bold]" in shown
    assert plain(shown) == shown


def test_a_comment_of_a_script_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say_script(["# a\nrm -rf /", "vllm serve 'a\nb'"])
    assert capsys.readouterr().out == "# a\\nrm -rf /\nvllm serve 'a\nb'\n"


def test_say_writes_where_it_is_told() -> None:
    file = io.StringIO()
    say("x\x1b", file=file)
    assert file.getvalue() == "x\\x1b\n"
