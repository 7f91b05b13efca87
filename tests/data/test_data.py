"""Examples from every source, prompts that keep their template, and errors that name the row."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specalign.data import Columns, Example, encode_prompts, load_examples
from specalign.errors import UserError

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


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_local_tables(tmp_path: Path, ending: str) -> None:
    frame = pd.DataFrame({"article": ["one", "two"], "summary": ["1", None]})
    path = tmp_path / f"data.{ending}"
    if ending == "jsonl":
        path.write_text(frame.to_json(orient="records", lines=True))
    else:
        write = frame.to_csv if ending == "csv" else frame.to_parquet
        write(path, index=False)
    loaded = load_examples(str(path), "train", columns=Columns("article", "summary"))
    assert [(example.document, example.reference) for example in loaded[:1]] == [("one", "1")]
    assert loaded[1] == Example("2", "two", "")


def test_a_folder_has_a_file_a_split(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", {"document": "d", "id": "x", "category": "c"})
    assert load_examples(str(tmp_path), "test") == [Example("x", "d", "", "c")]
    with pytest.raises(UserError, match=r"has no file train\.jsonl"):
        load_examples(str(tmp_path), "train")


def test_limit(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", *({"document": f"d{i}"} for i in range(5)))
    assert [example.document for example in load_examples(str(path), "train", limit=2)] == ["d0", "d1"]


def test_spec_bench(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "question.jsonl",
        {"question_id": 7, "category": "writing", "turns": ["first", "second"]},
        {"question_id": 8, "category": "summarization", "turns": ["text"], "reference": ["short"]},
        {"question_id": 9, "category": "rag", "turns": ["text"], "reference": [["one", "two"]]},
    )
    assert load_examples(f"spec_bench:{path}", "test") == [
        Example("7", "first", "", "writing"),
        Example("8", "text", "short", "summarization"),
        Example("9", "text", "one, two", "rag"),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "d"}], r"row 1: no column 'document' \(columns: text\)"),
        ([{"document": "d"}, {"document": " "}], "row 2: column 'document' is empty or not text"),
        ([{"document": "d", "reference": 3}], "row 1: column 'reference' is not text"),
        ([[1]], "line 1: not a JSON object"),
        ([], "is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_examples(str(write_rows(tmp_path / "bad.jsonl", *rows)), "train")


def test_broken_json_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"document": "d"}\n{"document": \n')
    with pytest.raises(UserError, match=r"bad\.jsonl, line 2: not JSON"):
        load_examples(str(path), "train")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cnn_dailymial", "unknown data set 'cnn_dailymial'; did you mean 'cnn_dailymail'"),
        ("builtin:docs", "unknown data set 'builtin:docs'"),
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


def test_one_column_may_be_named_alone(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", {"document": "d", "summary": "s", "reference": "r"})
    assert load_examples(str(path), "train", columns=Columns("", "summary")) == [Example("1", "d", "s")]
    assert load_examples(str(path), "train", columns=Columns("summary", "")) == [Example("1", "s", "r")]
