"""report.html in a real browser: no error, nothing fetched, sortable, and no wider than a phone.

Needs Chromium (``apt-get install chromium``). Without one the tests are skipped, unless SPECALIGN_BROWSER names the
one that must be there, as .ci/run does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from specalign.reports import build_report

CHROMIUM = os.environ.get("SPECALIGN_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (390, 1300)
"""A phone's and a desktop's, in CSS pixels."""

TOO_WIDE = """() => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  const boxes = [...document.querySelectorAll(".scroll")];
  return boxes.filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.textContent);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here; SPECALIGN_BROWSER names one")
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def _open(browser: Browser, path: Path, width: int, dark: bool) -> tuple[Page, list[str]]:
    """The page, and every problem that it reports and every file that it asks for."""
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    problems: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            problems.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    return page, problems


def test_opens_without_a_complaint_and_fits(browser: Browser, make_run: Callable[..., Path]) -> None:
    path = build_report(make_run()).with_suffix(".html")
    for width, dark in product(WIDTHS, (False, True)):
        page, problems = _open(browser, path, width, dark)
        assert page.screenshot(full_page=True)
        assert problems == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("svg").count() >= 5
        if width == max(WIDTHS):
            assert page.evaluate(TOO_WIDE) == [], "a table scrolls sideways"
        page.close()


def test_a_click_on_a_head_sorts(browser: Browser, make_run: Callable[..., Path]) -> None:
    page, problems = _open(browser, build_report(make_run()).with_suffix(".html"), 1280, dark=False)
    table = page.locator("table").first
    head = table.locator("th", has_text="α counted")
    column = head.evaluate("head => head.cellIndex") + 1
    head.click()
    found = [text for text in table.locator(f"tbody td:nth-child({column})").all_text_contents() if text != "–"]
    values = [float(text.split()[0]) for text in found]
    assert values == sorted(values)
    assert len(set(values)) > 2
    head.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert problems == []
