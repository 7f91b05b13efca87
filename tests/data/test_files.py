"""Files of every kind: read, or refused by one line that says what the file is."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specalign.data import Example, load_examples
from specalign.data.preflight import licence
from specalign.errors import UserError
from specalign.names import ENDINGS

ROWS = [{"document": "one", "reference": "1"}, {"document": "zwei, ü", "reference": "2"}]
EXAMPLES = [Example("1", "one", "1"), Example("2", "zwei, ü", "2")]
TEXTS = {
    ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    ".json": json.dumps(ROWS, indent=1),
    ".csv": 'document,reference\none,1\n"zwei, ü",2\n',
    ".txt": "one\n\n zwei, ü\n",
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("ending", TEXTS)
def test_texts_plain_and_zipped(tmp_path: Path, ending: str, zipped: bool) -> None:
    data = TEXTS[ending].encode()
    path = tmp_path / f"data{ending}{'.gz' if zipped else ''}"
    path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
    found = load_examples(str(path), "all")
    if ending == ".txt":
        assert [example.document for example in found] == ["one", " zwei, ü"]
    else:
        assert found == EXAMPLES


@pytest.mark.parametrize(
    "text", [json.dumps({"version": 1, "data": ROWS}), TEXTS[".jsonl"], json.dumps(ROWS[0])]
)
def test_json_may_be_a_list_in_an_object_lines_or_one_row(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    found = load_examples(str(tmp_path / "data.json"), "all")
    assert found == EXAMPLES[: len(found)]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", TEXTS[".jsonl"].encode("utf-16"), "is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8"),
        ("a.jsonl", TEXTS[".jsonl"].encode("utf-16-le"), "is UTF-16LE text"),
        ("a.csv", TEXTS[".csv"].encode("utf-32"), "is UTF-32 text"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), r"is compressed by gzip: let its name end in \.gz"),
        ("a.jsonl", b"PAR1....", r"is a Parquet file: let its name end in \.parquet"),
        ("a.csv", b"PK\x03\x04....", "a ZIP archive or a spreadsheet"),
        ("a.jsonl", b"\x7fELF\x02\x01", "is not text: it has control characters"),
        ("a.jsonl", b'{"document": "d"}\n{"document": "caf\xe9"}\n', r"is not UTF-8 text \(line 2, byte 18"),
        ("a.jsonl.gz", b"plain", "is not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(TEXTS[".jsonl"].encode() * 99, mtime=0)[:-9], "is not a whole gzip file"),
        ("a.json", b"[1, 2", "is not JSON: line 1"),
        ("a.json", b'{"x": [1], "y": [2]}', "row 1: no column 'document'"),
        ("a.json", b"[" * 100_000, "is not read as JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: not read: JSON nested too deep"),
        ("a.jsonl", b'{"document": ' + b"1" * 5000 + b"}", "line 1: not read: Exceeds the limit"),
        ("a.csv", b"document;reference\na;b\n", "are its cells separated by ';'"),
        ("a.csv", b"document\treference\na\tb\n", r"separated by '\\t'"),
        ("a.csv", b"document,document\na,b\n", "has the column 'document' twice"),
        ("a.xlsx", b"x", r"the name of a data file ends in one of: \.jsonl, \.json, "),
    ],
)
def test_what_a_file_is_instead_is_said(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        load_examples(str(tmp_path / name), "all")
    assert "LATIN1" not in str(caught.value) or "caf" in data.decode("latin-1")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path, message in {
        tmp_path / "pipe.jsonl": "is a named pipe",
        Path("/dev/null"): "is a device",
        tmp_path / "none.jsonl": "no such data file",
        tmp_path / "none": "no such data file",
        tmp_path / ("x" * 300 + ".csv"): "File name too long",
        tmp_path / "pipe.jsonl" / "below.csv": "no such data file",
    }.items():
        for look in (lambda source: load_examples(source, "all"), licence):
            with pytest.raises(UserError, match=message):
                look(str(path))


@pytest.mark.parametrize(("row", "rest"), [(3, ""), (3, 'document 50,"b" c\n'), (99, "")])
def test_a_quote_that_is_never_closed_is_an_error_with_its_line(tmp_path: Path, row: int, rest: str) -> None:
    lines = [f"document {number},summary {number}\n" for number in range(100)]
    lines[row] = f'"document {row},summary {row}\n'
    path = tmp_path / "data.csv"
    path.write_text("document,reference\n" + "".join(lines) + rest)
    for skip in (False, True):
        with pytest.raises(UserError, match=f"the row that begins in line {row + 2} is not CSV"):
            load_examples(str(path), "all", skip_bad_rows=skip)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "ignore")))
@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if not ending.endswith(".gz")])
def test_any_bytes_are_examples_or_one_error(tmp_path: Path, ending: str, data: bytes) -> None:
    path = tmp_path / f"data{ending}"
    path.write_bytes(data)
    try:
        found = load_examples(str(path), "all")
    except UserError:
        return
    assert all(example.document.strip() for example in found)
