"""builtin:docstrings: the interpreter's own standard-library documentation as a summarisation task.

A docstring's first line is, by PEP 257, its summary; the rest is the document. Nothing is downloaded or
copied: the source files of the running interpreter are read, and no module is imported.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from specalign.data.examples import Example, Split

SUMMARY_CHARACTERS = range(15, 161)
BODY_CHARACTERS = range(150, 1201)
SKIPPED_FOLDERS = {
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "pydoc_data",
    "__pycache__",
}


def docstring_examples(split: Split) -> tuple[Example, ...]:
    """The examples of one split (80 % train, 10 % validation, 10 % test, by a hash of the content), by id."""
    return tuple(example for example in _all_examples() if split in ("all", split_of(example.id)))


@functools.cache
def _all_examples() -> tuple[Example, ...]:
    found: dict[str, Example] = {}
    for module, path in library_files():
        for body, summary in _docstrings(path):
            id_ = hashlib.sha256(f"{summary}\n{body}".encode()).hexdigest()[:16]
            found.setdefault(id_, Example(id_, body, summary, module.parts[0]))
    return tuple(found[id_] for id_ in sorted(found))


def library_files() -> Iterator[tuple[Path, Path]]:
    """(Path within the library, path) of each source file of the standard library, tests left out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if not SKIPPED_FOLDERS.intersection(module.parts):
            yield module, path


def split_of(id_: str) -> Split:
    """80 % train, 10 % validation, 10 % test, by the first digits of a hash."""
    share = int(id_[:8], 16) / 16**8
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def syntax_tree(path: Path) -> ast.Module | None:
    """Of a source file; None for the library's deliberately broken samples."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return None


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """(body, summary) of every suitable docstring of a source file."""
    for node in ast.walk(syntax_tree(path) or ast.Module([], [])):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            summary, _, body = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").partition("\n")
            summary, body = summary.strip(), body.strip()
            if len(summary) in SUMMARY_CHARACTERS and len(body) in BODY_CHARACTERS:
                yield body, summary
