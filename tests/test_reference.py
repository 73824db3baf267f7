"""The reference names every public object once, as it is imported."""

import re
from pathlib import Path

import pytest

import regard

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"


@pytest.mark.parametrize("room", ["regard", "regard.nn", "regard.distributed"])
def test_every_public_name_stands_once_on_the_page(room: str) -> None:
    module = regard if room == "regard" else getattr(regard, room.removeprefix("regard."))
    shown = re.findall(
        rf"^\.\. auto(?:class|function):: {re.escape(room)}\.(\w+)$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    rooms = {"__version__", "nn", "distributed"}
    assert sorted(shown) == sorted(set(module.__all__) - rooms), "docs/reference.md, one `.. autofunction::` each"


def test_the_tests_that_the_page_of_the_explorer_names_are_there() -> None:
    tests = Path(__file__).parent
    named = re.findall(r"`(test_\w+)`(?: \(`([\w/.]+)`\))?", (PAGE.parent / "explorer.md").read_text("utf-8"))
    assert len(named) > 20
    for name, file in named:
        own = "explorer/test_page_in_a_browser.py" if not file else file.removeprefix("tests/")
        places = [tests / own, tests / "explorer" / own]
        text = next(place for place in places if place.exists()).read_text("utf-8")
        assert f"def {name}(" in text, (name, own)
