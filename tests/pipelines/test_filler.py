"""Filling changes the gaps and nothing else."""

import re
from pathlib import Path

import pytest

import regard


@pytest.mark.parametrize(
    "text",
    ["naïve (50 %) [MASK] œuvre — ok", "she\t[MASK]  the door", "[MASK] and <mask>!", "Ünïcode [mask]\u00a0x"],
)
def test_only_the_gap_changes(text: str) -> None:
    made = regard.load("english")(text)
    best = iter(gap[0][0] for gap in made.gaps)
    assert made.text == re.sub(r"\[MASK\]|<mask>|\[mask\]", lambda _: next(best), text)
    assert made.source == text
    assert next(best, None) is None


def test_the_page_of_a_filling_is_that_of_its_text(tmp_path: Path) -> None:
    page = regard.load("english")("the [MASK] of the river").look(tmp_path / "page.html")
    (run,) = page.document["runs"]
    assert run["source"] == "the [MASK] of the river"
    assert len(run["maps"]) == 4
    assert (tmp_path / "page.html").stat().st_size > 10_000
