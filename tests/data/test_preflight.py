"""What a few rows tell: references, template, cuts, licence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specalign.data import Example, Prompt
from specalign.data.bad_rows import BadRow
from specalign.data.preflight import describe_prompts, describe_rows, licence
from specalign.data.sources import Reading
from specalign.errors import UserError
from specalign.preflight import Caution


def test_references_are_needed_only_by_methods_that_read_them() -> None:
    rows = [Example("1", "d"), Example("2", "d")]
    assert describe_rows(Reading(rows, []), references=False) == "the first 2 are read; 0 have a reference"
    with pytest.raises(UserError, match=r"name their column: --data\.reference"):
        describe_rows(Reading(rows, []), references=True)


def test_rows_that_are_left_out_are_no_mere_ok() -> None:
    found = describe_rows(Reading([Example("1", "d")], [BadRow("line 2", "not JSON")]), references=False)
    assert isinstance(found, Caution)
    assert "left out 1 bad row: line 2: not JSON" in found.text


class Plain:
    """A tokenizer without a chat template, by whose ids every text is the same."""

    chat_template = None
    eos_token, eos_token_id = "</s>", 2

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __call__(self, _text: str) -> dict[str, list[int]]:
        return {"input_ids": self.ids}


def test_cut_documents_are_counted() -> None:
    plain: Any = Plain([7])
    chat: Any = SimpleNamespace(chat_template="{{ messages }}")
    whole, cut = Prompt("1", (1, 2, 3), ()), Prompt("2", (1, 2), (), n_truncated=4)
    assert describe_prompts([whole], chat, "auto") == (
        "the tokenizer's chat template, up to 3 tokens; 0 of 1 are cut to fit"
    )
    found = describe_prompts([whole, cut], plain, "auto")
    assert isinstance(found, Caution)
    assert found.text.startswith("plain text, up to 3 tokens; 1 of 2 are cut")
    assert "--data.prompt tldr" in found.text


def test_an_end_that_is_left_off_is_told() -> None:
    ends: Any = Plain([7, 2])
    found = describe_prompts([Prompt("1", (7,), ())], ends, "plain")
    assert isinstance(found, Caution)
    assert "the tokenizer's end of texts (</s>) is left off" in found.text
    assert isinstance(describe_prompts([Prompt("1", (7, 2), ())], ends, "plain", keep_end=True), str)


def test_licences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def card(name: str, timeout: float) -> Any:
        if name == "far/away":
            raise ConnectionError
        return SimpleNamespace(card_data=SimpleNamespace(license=["cc-by-4.0"] if name == "a/b" else None))

    monkeypatch.setattr("huggingface_hub.dataset_info", card)
    assert str(licence("builtin:docstrings")).startswith("PSF-2.0")
    assert str(licence("gsm8k")).startswith("MIT, by its card: https://huggingface.co/datasets/openai/gsm8k")
    assert str(licence("a/b")).startswith("cc-by-4.0, by its card")
    assert all(isinstance(licence(name), Caution) for name in ("xsum", "c/d", "far/away"))
    data = tmp_path / "data.jsonl"
    data.write_text("{}")
    assert isinstance(licence(str(data)), Caution)
    (tmp_path / "LICENSE.txt").write_text("MIT")
    assert licence(str(data)) == licence(str(tmp_path)) == "see LICENSE.txt beside the data"
