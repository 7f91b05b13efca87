"""What a few rows tell: references, template, cuts, licence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specalign.data import Example, Prompt
from specalign.data.preflight import describe_prompts, describe_rows, licence
from specalign.errors import UserError
from specalign.preflight import Caution


def test_references_are_needed_only_by_methods_that_read_them() -> None:
    rows = [Example("1", "d"), Example("2", "d")]
    assert describe_rows(rows, references=False) == "the first 2 are read; 0 have a reference"
    with pytest.raises(UserError, match=r"name their column: --data\.reference"):
        describe_rows(rows, references=True)


def test_cut_documents_are_counted() -> None:
    plain: Any = SimpleNamespace(chat_template=None)
    chat: Any = SimpleNamespace(chat_template="{{ messages }}")
    whole, cut = Prompt("1", (1, 2, 3), ()), Prompt("2", (1, 2), (), n_truncated=4)
    assert describe_prompts([whole], chat, "auto") == (
        "the tokenizer's chat template, up to 3 tokens; 0 of 1 documents are cut to fit"
    )
    found = describe_prompts([whole, cut], plain, "auto")
    assert isinstance(found, Caution)
    assert found.text.startswith("plain text, up to 3 tokens; 1 of 2 documents are cut")
    assert "--data.prompt tldr" in found.text


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
