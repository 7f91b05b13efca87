"""Examples from every source, prompts that keep their template, and errors that name the row."""

from __future__ import annotations

import ast
import json
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specalign.data import Columns, Example, docstrings, encode_prompts, functions, load_examples
from specalign.data.conversations import with_answers
from specalign.data.examples import USUAL, example_from_row, with_distinct_ids
from specalign.data.sources import HUB
from specalign.errors import UserError
from specalign.templates import OF_SOURCE, PLACE, PROMPTS, prompt_text

CHAT = "{% for m in messages %}<u> {{ m['content'] }} {% endfor %}<a>"


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    vocabulary = {word: id_ for id_, word in enumerate(["?", "</s>", "<u>", "<a>", *"abcdefgh", "sum", "up"])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?", eos_token="</s>")


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_docstrings_are_split_by_content_without_overlap() -> None:
    parts = [load_examples("builtin:docstrings", split) for split in ("train", "validation", "test")]
    ids = [{example.id for example in part} for part in parts]
    assert len(ids[0] | ids[1] | ids[2]) == sum(map(len, ids))
    total = sum(map(len, ids))
    assert total > 1000
    assert 0.75 < len(ids[0]) / total < 0.85
    for example in parts[2]:
        assert 15 <= len(example.reference) <= 160
        assert 150 <= len(example.document) <= 1200
        assert "\n" not in example.reference
    assert parts[2] == load_examples("builtin:docstrings", "test")


def test_functions_are_split_by_module() -> None:
    parts = [load_examples("builtin:functions", split) for split in ("train", "validation", "test")]
    ids = [{example.id for example in part} for part in parts]
    assert len(ids[0] | ids[1] | ids[2]) == sum(map(len, ids)) == len(load_examples("builtin:functions", "all"))
    assert len(ids[0]) > 1000
    assert min(len(ids[1]), len(ids[2])) > 100
    assert parts[2] == load_examples("builtin:functions", "test")
    for example in parts[2]:
        assert 3 <= len(example.reference.splitlines()) <= 40
        (function,) = ast.parse(f"{example.document}\n{textwrap.indent(example.reference, '    ')}").body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.get_docstring(function)


def test_the_functions_of_a_module_are_in_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = '''
class Shape:
    @staticmethod
    def {name}(x):
        """{docstring} Said at column 0."""
        y = x + 1  # {name}

        return (y,
                x)

    def short(self):
        """{docstring}"""
        return 1
'''
    for module in "abcdefgh":
        texts = [
            code.format(name=f"{module}{i}", docstring="What it does with its number.\n") for i in range(3)
        ]
        (tmp_path / f"{module}.py").write_text("".join(texts))
    (tmp_path / "broken.py").write_text("def f(:")
    monkeypatch.setattr(docstrings.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    found = functions._all_examples.__wrapped__()
    assert len(found) == 24
    for module in "abcdefgh":
        mine = [(part, example) for part, example in found if example.category == f"{module}.py"]
        assert len(mine) == 3
        assert len({part for part, _ in mine}) == 1
    assert len({part for part, _ in found}) > 1
    first = next(example for _, example in found if "def a0(" in example.document)
    assert first.document == 'def a0(x):\n    """What it does with its number.\n Said at column 0."""'
    assert first.reference == "y = x + 1  # a0\n\nreturn (y,\n        x)"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_local_tables(tmp_path: Path, ending: str) -> None:
    frame = pd.DataFrame({"article": ["one", "two"], "summary": ["1", None]})
    path = tmp_path / f"data.{ending}"
    if ending == "jsonl":
        path.write_text(frame.to_json(orient="records", lines=True))
    else:
        write = frame.to_csv if ending == "csv" else frame.to_parquet
        write(path, index=False)
    loaded = load_examples(str(path), "all", columns=Columns("article", "summary"))
    assert [(example.document, example.reference) for example in loaded[:1]] == [("one", "1")]
    assert loaded[1] == Example("2", "two", "")


def test_a_folder_has_a_file_a_split(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", {"document": "d", "id": "x", "category": "c"})
    assert load_examples(str(tmp_path), "test") == [Example("x", "d", "", "c")]
    with pytest.raises(UserError, match=r"has no file train\.jsonl"):
        load_examples(str(tmp_path), "train")


def test_limit(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", *({"document": f"d{i}"} for i in range(5)))
    assert [example.document for example in load_examples(str(path), "all", limit=2)] == ["d0", "d1"]


def test_spec_bench(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "question.jsonl",
        {"question_id": 6, "category": "math", "turns": ["one", "two"], "reference": ["1", "2"]},
        {"question_id": 7, "category": "writing", "turns": ["first", "second"]},
        {"question_id": 8, "category": "summarization", "turns": ["text"], "reference": ["short"]},
        {"question_id": 9, "category": "rag", "turns": ["text"], "reference": [["one", "two"]]},
    )
    assert load_examples(f"spec_bench:{path}", "test") == [
        Example("6", "one", "1", "multi_turn_conversation", with_answers(["one", "two"], ["1", "2"])),
        Example("7", "first", "", "multi_turn_conversation", with_answers(["first", "second"])),
        Example("8", "text", "short", "summarization"),
        Example("9", "text", "one, two", "rag"),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "d"}], r"line 1: no column 'document' \(columns: text\)"),
        ([{"document": "d"}, {"document": " "}], "line 2: column 'document' is empty or not text"),
        ([{"document": "d", "reference": 3}], "line 1: column 'reference' is not text"),
        ([[1]], "line 1: not a JSON object"),
        ([], "is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_examples(str(write_rows(tmp_path / "bad.jsonl", *rows)), "all")


def test_broken_json_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"document": "d"}\n{"document": \n')
    with pytest.raises(UserError, match=r"bad\.jsonl: 1 bad row: line 2: not JSON"):
        load_examples(str(path), "all")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cnn_dailymial", "unknown data set 'cnn_dailymial'; did you mean 'cnn_dailymail'"),
        ("builtin:docs", "unknown data set 'builtin:docs'"),
        ("spec_bench:/data", "takes Spec-Bench's question.jsonl"),
        ("nowhere.jsonl", r"no such data file: nowhere\.jsonl"),
        ("spec_bench:nowhere.jsonl", r"no such data file: nowhere\.jsonl"),
    ],
)
def test_unknown_sources_are_named(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_examples(source, "test")


def test_plain_and_chat_prompts(words: PreTrainedTokenizerFast) -> None:
    example = Example("x", "a b c", "d e")
    (plain,) = encode_prompts([example], words, prompt="sum {document} up", max_prompt_tokens=20)
    assert words.decode(list(plain.input_ids)) == "sum a b c up"
    assert words.decode(list(plain.reference_ids)) == "d e </s>"
    words.chat_template = CHAT
    try:
        (chat,) = encode_prompts([example], words, prompt="sum {document} up", max_prompt_tokens=20)
        assert words.decode(list(chat.input_ids)) == "<u> sum a b c up <a>"
        (forced,) = encode_prompts(
            [example], words, prompt="{document}", template="plain", max_prompt_tokens=20
        )
        assert words.decode(list(forced.input_ids)) == "a b c"
    finally:
        words.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        encode_prompts([example], words, prompt="{document}", template="chat", max_prompt_tokens=20)


def test_only_the_document_is_cut_and_the_cut_is_counted(words: PreTrainedTokenizerFast) -> None:
    example = Example("x", "a b c d e f g h")
    (prompt,) = encode_prompts([example], words, prompt="sum {document} up", max_prompt_tokens=6)
    assert words.decode(list(prompt.input_ids)) == "sum a b c d up"
    assert prompt.n_truncated == 4
    assert prompt.reference_ids == ()
    with pytest.raises(UserError, match="max_prompt_tokens = 2 leaves no room for the document of 'x'"):
        encode_prompts([example], words, prompt="sum {document} up", max_prompt_tokens=2)


def test_a_prompt_without_a_token_is_refused() -> None:
    raw = Tokenizer(models.BPE({"a": 0}, []))  # without an unknown token, other letters vanish
    silent = PreTrainedTokenizerFast(tokenizer_object=raw)
    with pytest.raises(UserError, match="the prompt of 'x' has no tokens"):
        encode_prompts([Example("x", "b")], silent, prompt="{document}", max_prompt_tokens=9)


def test_a_prompt_without_its_place_is_refused(words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"the prompt has no \{document\}: 'sum up'"):
        encode_prompts([Example("x", "a")], words, prompt="sum up", max_prompt_tokens=9)


SPEC_BENCH = Path(__file__).parents[3] / "shared" / "data" / "spec_bench" / "question.jsonl"


@pytest.mark.skipif(not SPEC_BENCH.is_file(), reason="no copy of Spec-Bench beside the repository")
def test_the_real_spec_bench() -> None:
    examples = load_examples(f"spec_bench:{SPEC_BENCH}", "test")
    assert len(examples) == 480
    summaries = [example for example in examples if example.category == "summarization"]
    assert len(summaries) == 80
    assert all(example.reference for example in summaries)
    sizes = Counter(example.category for example in examples)
    assert len(sizes) == 6
    assert set(sizes.values()) == {80}


def test_one_column_may_be_named_alone(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", {"document": "d", "summary": "s", "reference": "r"})
    assert load_examples(str(path), "all", columns=Columns("", "summary")) == [Example("1", "d", "s")]
    assert load_examples(str(path), "all", columns=Columns("summary", "")) == [Example("1", "s", "r")]


BAD = ('{"document": "a"}', "{", '{"document": ""}', "[1]", '{"document": "b"}')


def test_all_bad_rows_are_listed_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([*BAD, BAD[0]]) + "\n")
    with pytest.raises(UserError) as caught:
        load_examples(str(path), "all")
    assert "3 bad rows: line 2: not JSON" in str(caught.value)
    for place in ("line 3: column 'document' is empty", "line 4: not a JSON object", "--skip-bad-rows"):
        assert place in str(caught.value)


def test_bad_rows_are_left_out_only_when_asked_and_are_listed_then_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([*BAD, '{"document": "c"}']) + "\n")
    found = load_examples(str(path), "all", skip_bad_rows=True)
    assert [(example.id, example.document) for example in found] == [("1", "a"), ("5", "b"), ("6", "c")]
    assert "left out 3 bad rows: line 2: not JSON" in capsys.readouterr().err
    assert len(load_examples(str(path), "all", limit=3, skip_bad_rows=True)) == 3
    assert len(load_examples(str(path), "all", limit=1)) == 1, "what is not read cannot be bad"


def test_a_file_without_a_good_row_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "data.jsonl", *({"text": "d"} for _ in range(1000)))
    with pytest.raises(
        UserError, match=r"200 bad rows: line 1, .*, line 5 and 195 more: no column 'document'"
    ) as caught:
        load_examples(str(path), "all")
    assert str(caught.value).count("no column") == 1
    assert "--data.document" in str(caught.value)
    with pytest.raises(UserError, match="would leave out 200 of 200 rows"):
        load_examples(str(path), "all", skip_bad_rows=True)


def test_skipping_never_leaves_out_most_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "data.jsonl", {"document": "d"}, *({"text": "d"} for _ in range(70)))
    with pytest.raises(
        UserError, match="would leave out 70 of 71 rows, more than it keeps: 70 bad rows: line 2,"
    ):
        load_examples(str(path), "all", skip_bad_rows=True)


def test_csv_cells(tmp_path: Path) -> None:
    """A byte-order mark, cells of several lines and of any length are fine; a row that is too long is named."""
    path = tmp_path / "data.csv"
    path.write_text('\ufeffdocument,reference\n"two\nlines",r\n' + "x" * 200_000 + ",s\n", encoding="utf-8")
    first, second = load_examples(str(path), "all")
    assert (first.document, first.reference) == ("two\nlines", "r")
    assert len(second.document) == 200_000
    path.write_text("document,reference\na,b\nc,d,e\n")
    with pytest.raises(UserError, match="line 3: more cells than the header has"):
        load_examples(str(path), "all")


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"document": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl is not UTF-8 text .*iconv"):
        load_examples(str(tmp_path / "a.jsonl"), "all")
    (tmp_path / "a.parquet").write_bytes(b"document\nd\n")
    with pytest.raises(UserError, match=r"a\.parquet is not a Parquet file"):
        load_examples(str(tmp_path / "a.parquet"), "all")


HUB_ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "cnn_dailymail": ({"article": "d", "highlights": "r", "id": "7"}, "abisee/cnn_dailymail", "validation"),
    "xsum": ({"document": "d", "summary": "r", "id": "7"}, "EdinburghNLP/xsum", "validation"),
    "gsm8k": ({"question": "d", "answer": "r"}, "openai/gsm8k", "train[95%:]"),
    "wmt": ({"translation": {"en": "d", "de": "r"}}, "wmt/wmt14", "validation"),
    "my/set:small": ({"document": "d", "reference": "r"}, "my/set", "validation"),
}


@pytest.mark.parametrize("source", HUB_ROWS)
def test_hub_data_sets_by_name(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own columns and splits; a few rows are streamed, many are not."""
    row, name, part = HUB_ROWS[source]
    calls: list[tuple[str, str, bool]] = []

    def load_dataset(name: str, _configuration: str | None, *, split: str, streaming: bool = False) -> Any:
        calls.append((name, split, streaming))
        return [row] * 100

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (example,) = load_examples(source, "validation", limit=1)
    assert (example.document, example.reference) == ("d", "r")
    assert len(load_examples(source, "validation")) == 100
    assert calls == [(name, part, "[" not in part), (name, part, False)]


def test_a_hub_without_a_network_says_what_to_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf download --repo-type dataset nobody/nothing"):
        load_examples("nobody/nothing", "test", limit=3)


def test_prompts_by_name() -> None:
    """A text with its place is itself; a name is a text; without either, each source has its own."""
    assert prompt_text("Say {document}", "xsum") == "Say {document}"
    assert prompt_text("summarize", "xsum") == "summarize: {document}"
    assert prompt_text("", "spec_bench:q.jsonl") == prompt_text("", "my.jsonl") == "{document}"
    assert all(PLACE in text for text in PROMPTS.values())
    assert set(OF_SOURCE.values()) <= set(PROMPTS)
    assert set(HUB) <= set(OF_SOURCE)
    with pytest.raises(
        UserError, match=r"no \{document\}: 'sumarize'; put it there, or name one of: .*summarize"
    ):
        prompt_text("sumarize", "xsum")


@given(st.lists(st.sampled_from([1, 2, "1", "1#2", "1#3", None, "x"]), max_size=12))
def test_no_two_rows_have_the_same_id(ids: list[object]) -> None:
    """Ids are labels: rows keep their order and text, and distinct ids stay as they are."""
    rows = [{"id": id_, "document": f"d{number}"} for number, id_ in enumerate(ids)]
    made = [example_from_row(row, USUAL, str(number)) for number, row in enumerate(rows, start=1)]
    found = with_distinct_ids(made)
    assert [example.document for example in found] == [row["document"] for row in rows]
    assert len({example.id for example in found}) == len(rows)
    assert with_distinct_ids(found) == found
    for given_, kept in zip(made, found, strict=True):
        assert kept.id == given_.id or kept.id.startswith(f"{given_.id}#")


@pytest.mark.parametrize("column", ["document", "reference", "category", "id"])
def test_half_a_character_in_a_row_is_named(tmp_path: Path, column: str) -> None:
    path = tmp_path / "data.jsonl"
    whole, half = {"document": "a \U0001f600"}, {"document": "b", column: "hello \ud83d world"}
    write_rows(path, whole, half)
    with pytest.raises(UserError, match=rf"line 2: column '{column}' has half a character .*\\ud83d"):
        load_examples(str(path), "all")
    assert len(load_examples(str(path), "all", skip_bad_rows=True)) == 1
