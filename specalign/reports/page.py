"""report.html: a document as one file that loads nothing, and whose security policy lets nothing be loaded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from specalign.reports.content import Block, Document
from specalign.text import plain

MEANINGS = {
    "γ": "draft length in tokens",
    "speed-up": "plain target's seconds per token over the row's at its own output lengths, paired by prompt [95 %]",
    "jointly": "bounds of the speed-up that hold for all rows of the run at once",
    "whole": "the speed-up over whole requests at their own lengths",
    "α expected": "mean over examined draft positions of the sum of min(p, q)",
    "α counted": "accepted over examined drafts",
    "break-even α": "the acceptance rate at which decoding would be as fast as the plain target here",
    "τ": "tokens per target call, the target's own token included",
    "c": "one drafting call over one plain target call",
    "decode speed-up": "the speed-up over decode seconds alone, without prefill",
    "predicted": "decode speed-up that the cost model gives from step times and acceptance",
    "tokens/s": "tokens over whole-call seconds",
}
"""Column -> what a pointer over its head shows."""


def html_page(document: Document, drawings: Mapping[str, str]) -> str:
    """The page; ``drawings`` are SVG elements by picture name. Every other string is escaped."""
    environment = Environment(
        loader=PackageLoader("specalign.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    script = _resource("sort.js")
    page = environment.get_template("report.html.j2").render(
        document=document,
        drawings={name: Markup(text) for name, text in drawings.items()},
        meanings=MEANINGS,
        tagged=_tagged,
        style=Markup(_resource("style.css")),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )
    return plain(page)


def _tagged(block: Block) -> dict[str, object]:
    return {"kind": type(block).__name__, "value": block}


def _resource(name: str) -> str:
    return (files("specalign.reports") / "templates" / name).read_text(encoding="utf-8")
