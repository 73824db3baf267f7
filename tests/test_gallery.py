"""Every figure of the gallery is drawn, in both themes, and shown on its page."""

import re
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

from drawn import check_opens

DOCS = Path(__file__).parents[1] / "docs"
GALLERY: dict[str, Any] = run_path(str(DOCS / "gallery.py"))
FAST = ["alignment-long", "batch", "cjk", "film", "long-words", "right-to-left"]


def test_the_page_shows_every_figure_in_both_themes() -> None:
    page = (DOCS / "gallery.md").read_text("utf-8")
    shown = re.findall(r"```\{image\} gallery/(\S+)\n:class: only-(light|dark)\n", page)
    files = {GALLERY["file_of"](name, theme): theme for name in GALLERY["FIGURES"] for theme in GALLERY["THEMES"]}
    assert dict(shown) == files
    assert len(shown) == len(files)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in GALLERY["FIGURES"]
])  # fmt: skip
def test_a_figure_is_drawn_of_a_size_to_be_looked_at(name: str, tmp_path: Path) -> None:
    for theme in GALLERY["THEMES"] if name not in FAST else ["dark"]:
        path = tmp_path / GALLERY["file_of"](name, theme)
        figure = GALLERY["FIGURES"][name](theme)
        GALLERY["finished"](figure, path)
        check_opens(path)
        width, height = figure.get_size_inches()
        assert width < 14.5
        assert height < 13
