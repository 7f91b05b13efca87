"""A figure as SVG: a file that looks the same everywhere, or a small element of a page."""

from __future__ import annotations

import io
import re
from collections import Counter

import matplotlib as mpl
from matplotlib.figure import Figure

from specalign.reports.style import HOVER, SETTINGS
from specalign.text import plain


def svg_file(figure: Figure) -> str:
    """A whole SVG file, its letters drawn as paths; the same text for the same data."""
    return _drawn(figure, "path")


def inline_svg(figure: Figure, name: str) -> str:
    """An element of a page, small: text as text, one decimal, each style and each id in use once, by a short name.

    The page's style sheet gives the font; the names begin with ``name``, so that they are the page's only ones.
    """
    text = _drawn(figure, "none")
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", text).replace("xlink:href=", "href=")
    text = _short_ids(text, name)
    text = _shared_styles(text, name)
    text = re.sub(r"\s*\n\s*", " ", text).replace("> <", "><")
    return text.strip().replace("<svg ", '<svg role="img" ', 1)


def _short_ids(text: str, name: str) -> str:
    """Ids that are referred to become ``name``-1, ``name``-2, ...; the others go."""
    used = dict.fromkeys(re.findall(r'(?:url\(#|href="#)([^)"]*)', text))
    short = {old: f"{name}-{number}" for number, old in enumerate(used, start=1)}
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{short[found[1]]}"' if found[1] in short else "", text)
    return re.sub(r'(url\(#|href="#)([^)"]*)', lambda found: found[1] + short[found[2]], text)


def _shared_styles(text: str, name: str) -> str:
    """A class for every style that occurs more than once."""
    often = [style for style, n in Counter(re.findall(r' style="([^"]*)"', text)).items() if n > 1]
    classes = {style: f"{name}-s{number}" for number, style in enumerate(often)}
    rules = "".join(f".{short}{{{style}}}" for style, short in classes.items())
    text = re.sub(
        r' style="([^"]*)"',
        lambda found: f' class="{classes[found[1]]}"' if found[1] in classes else found[0],
        text,
    )
    return text.replace(">", f"><style>{rules}</style>", 1)


def _drawn(figure: Figure, letters: str) -> str:
    drawn = io.StringIO()
    with mpl.rc_context({**SETTINGS, "svg.fonttype": letters}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return re.sub(rf'<g id="{HOVER}([^"]*)">', r"<g><title>\1</title>", plain(drawn.getvalue()))
