"""Which documents a student was trained on: a file of their hashes beside it, by which a benchmark knows its rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from specalign.curves import PROVENANCE
from specalign.data.prompts import Prompt
from specalign.files import write_text

FILE = "training_documents.txt"
"""In the student's folder: a line a document, the first 64 bits of the SHA-256 of what makes rows the same."""


def write_documents(folder: Path, prompts: Sequence[Prompt], start: Path | None = None) -> None:
    """Write the hashes of the prompts' documents, and of those of the student that training started from; in order."""
    documents = {prompt.document for prompt in prompts} | (_documents(start) if start else set())
    write_text(folder / FILE, "".join(f"{each}\n" for each in sorted(documents)))


def n_trained_on(student: Path, prompts: Sequence[Prompt]) -> int:
    """How many of the prompts are of documents that the student was trained on; 0 where its folder does not say.

    A folder that was exported for engines says it by the one that it was made of.
    """
    known = _documents(student)
    return sum(prompt.document in known for prompt in prompts)


def _documents(student: Path) -> set[str]:
    for folder in (student, _made_of(student)):
        if (folder / FILE).is_file():
            return set((folder / FILE).read_text(encoding="utf-8").split())
    return set()


def _made_of(student: Path) -> Path:
    try:
        written = json.loads((student / PROVENANCE).read_text(encoding="utf-8"))
        return Path(written["exported"]["student"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return student
