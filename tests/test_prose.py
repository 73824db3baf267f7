"""The checker of links, spelling and grammar finds what is wrong, and leaves alone what is not prose."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def prose() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prose", ROOT / ".ci" / "prose.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dead_links_are_found_and_live_ones_are_not(prose: ModuleType) -> None:
    page = ROOT / "docs" / "look.md"
    live = "[a](explorer.md) [b](explorer.md#what-is-in-the-file) [c](https://example.org/x) `[d](none.md)`\n"
    assert list(prose.dead_links(page, live)) == []
    dead = "\n[a](none.md) [b](explorer.md#no-such-heading) [c](http:/example.org) ![d](static/none.png)\n"
    found = list(prose.dead_links(page, dead))
    assert len(found) == 4
    assert all(line.startswith("docs/look.md:2: ") for line in found)


def test_spelling_and_grammar_of_prose_only(prose: ModuleType) -> None:
    linter = prose.harper()
    where = Path("page.md")
    wrong = "One sentence.\n\nThis sentense has an map in the the text.\n"
    found = list(prose.misspelt(where, wrong, linter))
    assert [line.split(": ")[1] for line in found] == ["'sentense'", "'an'", "'the the'"]
    assert all(line.startswith("page.md:3: ") for line in found)
    right = "The softmax's row.\n\n```python\nsentense = an map\n```\n\nA `sentense`, $xx yy xx$ and {source}`a.py`.\n"
    assert list(prose.misspelt(where, right, linter)) == []
