"""The pictures of the page in docs/static: `python docs/screenshots.py`, with Debian's Chromium.

page-*.png shows the whole page, door-*.png the ribbons of it, for the first page of the documentation.
"""

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from regard import cli

FOLDER = Path(__file__).parent / "static"
SENTENCE = "Le chat noir dort sur le canapé rouge."  # the README's command has it too


def main() -> None:
    """Translate a sentence, and photograph its page in light and dark."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        page = Path(folder) / "page.html"
        if code := cli.run(["look", "fr-en", SENTENCE, "--save", str(page)]):
            raise SystemExit(code)
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for theme in ("light", "dark"):
            for name, width, scale in (("page", 1200, 1.5), ("door", 900, 2)):
                tab = browser.new_page(viewport={"width": width, "height": 860}, device_scale_factor=scale)
                tab.goto(f"file://{page}#theme={theme}")
                tab.get_by_role("button", name="couch").hover()
                tab.wait_for_timeout(400)
                path = FOLDER / f"{name}-{theme}.png"
                if name == "page":
                    tab.screenshot(path=path, full_page=True)
                else:
                    tab.locator(".ribbons").screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    main()
