"""docs/notebook.ipynb: it runs from top to bottom, shows what it says, and is kept without outputs."""

from __future__ import annotations

import ast
import json
import linecache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import specalign
from tests.training.conftest import teacher_folder

__all__ = ["teacher_folder"]
PATH = Path(__file__).parent.parent / "docs" / "notebook.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def run(cells: list[str]) -> list[object]:
    """What each cell shows: the value of its last expression, None where it is none."""
    notebook = ModuleType("__main__")
    shown = []
    for number, cell in enumerate(cells):
        name = f"<cell {number}>"
        linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        body = ast.parse(cell).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), name, "exec"), vars(notebook))  # noqa: S102
        value: object = None
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), vars(notebook))  # noqa: S307
        shown.append(value)
    return shown


def drawn(value: Any) -> str:
    """As a notebook would: the picture's or the table's kind."""
    if hasattr(value, "_repr_png_"):
        assert value._repr_png_().startswith(b"\x89PNG")
        return "picture"
    if hasattr(value, "_repr_html_"):
        assert "<table" in value._repr_html_()
        return "table"
    return "text" if value is not None else "nothing"


EXPECTED = [
    "nothing",
    "table",
    "table",
    "table",
    "picture",
    "nothing",
    "nothing",
    "table",
    "picture",
    "picture",
    "table",
    "table",
    "text",
]


def test_it_is_kept_without_outputs() -> None:
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert PATH.read_text(encoding="utf-8") == json.dumps(NOTEBOOK, indent=1, ensure_ascii=False) + "\n"


def on_a_small_model(cells: list[str], teacher: Path) -> list[str]:
    """The same cells, over a teacher of the tests, with prompts and a vocabulary that it has room for."""
    changes = {
        '"builtin:smollm2"': repr(str(teacher)),
        '"draft_vocabulary": 8192': '"draft_vocabulary": 40',
        '"n_train": 48': '"n_train": 12, "prompt": "w1 {document} w2", "max_prompt_tokens": 16',
        '"max_prompt_tokens": 128': '"prompt": "w1 {document} w2", "max_prompt_tokens": 16',
    }
    text = "\0".join(cells)
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text.split("\0")


def test_it_runs_over_a_small_model(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path / "cache"))
    shown = run(on_a_small_model(CELLS, teacher_folder))
    assert [drawn(value) for value in shown] == EXPECTED
    assert "Temperature 0:" in capsys.readouterr().out


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, on SmolLM2: both drafters are better than what they began as."""
    monkeypatch.chdir(tmp_path)
    shown = run(CELLS)
    assert [drawn(value) for value in shown] == EXPECTED
    for student in shown[1:3]:
        assert isinstance(student, specalign.TrainedStudent)
        course = student.facts["validation"]
        assert course["best"] > course["start"]
