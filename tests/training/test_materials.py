"""Every row keeps its own reference and response, and every id and end of the tokenizer counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specalign.decoding import generate
from specalign.models.properties import eos_ids
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials

Tiny = Callable[..., TrainConfig]
WORDS = [f"w{number}" for number in range(30)]


@pytest.mark.parametrize("ids", [[1, 2, 3, 1, 2, 3], [None] * 6, list("abcdef")])
def test_rows_of_the_same_id_keep_their_own_texts(tiny: Tiny, tmp_path: Path, ids: list[Any]) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = [
        {"id": id_, "document": " ".join(WORDS[number : number + 4]), "reference": WORDS[number]}
        for number, id_ in enumerate(ids)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "validation.jsonl").write_text('{"document": "w29"}\n')
    config = tiny("sft")
    materials = load_materials(replace(config, data=replace(config.data, source=str(folder))))
    references, responses = materials.references("train"), materials.responses("train")
    assert len(references) == len(responses) == len(materials.train) == len(ids)
    for prompt, row in zip(materials.train, rows, strict=True):
        (word, _end) = references[prompt.id]
        assert materials.tokenizer.convert_ids_to_tokens(word) == row["reference"]
        alone = generate(materials.teacher, None, list(prompt.input_ids), max_new_tokens=6).token_ids[0]
        assert list(responses[prompt.id]) == alone


@pytest.fixture
def gapped(teacher_folder: Path, tmp_path: Path) -> Path:
    """The teacher with a tokenizer of few ids: the words, and far behind them what ends a text and a turn."""
    folder = tmp_path / "gapped"
    shutil.copytree(teacher_folder, folder)
    raw = Tokenizer(
        models.WordLevel({"?": 0, "<s>": 1, **{w: 3 + n for n, w in enumerate(WORDS)}}, unk_token="?")
    )
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?", bos_token="<s>")
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    for id_, name in ((2, "</s>"), (60, "<end>")):
        written["model"]["vocab"][name] = id_
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        written["added_tokens"].append({"id": id_, "content": name, "special": True, **flags})
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(written)),
        unk_token="?",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<end>"],
    )
    made.chat_template = "{% for m in messages %}{{ m['content'] }} <end> {% endfor %}"
    made.save_pretrained(folder)
    return folder


def test_ids_behind_a_gap_count_and_turns_end_decoding(tiny: Tiny, gapped: Path) -> None:
    config = tiny("sft")
    materials = load_materials(replace(config, teacher=replace(config.teacher, model=str(gapped))))
    assert len(materials.tokenizer) < 60
    assert materials.n_tokens == 61
    assert eos_ids(materials.teacher) == (2, 60)
    assert all(prompt.reference_ids[-1] == 60 for prompt in materials.train)
