"""builtin:functions: the standard library's own functions as a programming task, from docstring to body.

The document is a function's signature with its docstring, the reference its body. Nothing is downloaded or copied:
the source files of the running interpreter are read, and no module is imported.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from specalign.data.docstrings import library_files, split_of, syntax_tree
from specalign.data.examples import Example, Split

DOCSTRING_CHARACTERS = range(30, 401)
BODY_LINES = range(3, 41)


def function_examples(split: Split) -> tuple[Example, ...]:
    """The examples of one split (80 % train, 10 % validation, 10 % test), by id.

    A module's functions are all in one split, by a hash of its name: neighbours share names, idioms and whole lines.
    """
    return tuple(example for part, example in _all_examples() if split in ("all", part))


@functools.cache
def _all_examples() -> tuple[tuple[Split, Example], ...]:
    """(Its module's split, example); of equal documents the first one."""
    found: dict[str, tuple[Split, Example]] = {}
    for module, path in library_files():
        part = split_of(_digest(str(module)))
        for document, body in _functions(path):
            id_ = _digest(document)
            found.setdefault(id_, (part, Example(id_, document, body, module.parts[0])))
    return tuple(found[id_] for id_ in sorted(found))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _functions(path: Path) -> Iterator[tuple[str, str]]:
    """(Signature and docstring, body) of every suitable function of a source file, without their indentation."""
    tree = syntax_tree(path)
    lines = [] if tree is None else path.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(tree or ast.Module([], [])):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and len(node.body) > 1:
            last, first = node.body[-1].end_lineno or 0, (node.body[0].end_lineno or 0) + 1
            docstring, document = ast.get_docstring(node) or "", lines[node.lineno - 1 : first - 1]
            body = lines[first - 1 : last]
            if len(docstring) in DOCSTRING_CHARACTERS and len(body) in BODY_LINES:
                yield _moved(document, node.col_offset), _moved(body, node.body[1].col_offset)


def _moved(lines: list[str], n: int) -> str:
    """To the left by ``n`` columns, but for what begins before them, as a docstring's text may."""
    return "\n".join(line if line[:n].strip() else line[n:] for line in lines).strip("\n")
