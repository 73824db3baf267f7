"""A real browser, and pages to open in it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import regard
from regard.figures.page import Page
from regard.pipelines.page import look_at

SENTENCE = "le chat noir"


@pytest.fixture(scope="session")
def translation() -> Page:
    """The page of a shipped translator."""
    return look_at([regard.load("fr-en")], [SENTENCE])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a network; of one module, since Playwright's event loop runs as long as it is open."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = running.chromium.launch(executable_path=chromium, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page from a file; at the end no error was on the console, and nothing was asked of a network."""
    faults: list[str] = []
    asked: list[str] = []
    contexts = []

    def opened(page: Page, address: str = "", **settings: Any) -> Any:
        file = tmp_path / f"{len(contexts)}.html"
        page.save(file)
        settings.setdefault("viewport", {"width": 1280, "height": 900})
        context = browser.new_context(**settings)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(f"file://{file}{address}")
        tab.get_by_role("tablist").wait_for()
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
    assert [url for url in asked if not url.startswith(("file://", "data:", "blob:"))] == []
