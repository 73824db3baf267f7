"""The page as a file, and in a notebook."""

import json
import re
from pathlib import Path

import pytest
import torch

import regard
from regard.attention.maps.map import AttentionMap
from regard.errors import ConfigError, DataError
from regard.figures.files import is_drawn
from regard.figures.page import Page, inert, script
from regard.figures.style import THEMES


@pytest.mark.parametrize("text", ["</script><b>", "<!--", "\u2028", "a & b", '"'])
def test_nothing_in_a_document_ends_it(text: str) -> None:
    raw = inert({"title": text})
    assert "<" not in raw
    assert "\u2028" not in raw
    assert json.loads(raw) == {"title": text}


def test_the_script_stands_in_a_page() -> None:
    assert "</script" not in script().lower()
    assert "<!--" not in script()
    assert len(script()) < 150_000
    assert not re.search(r"https?://(?!www\.w3\.org)", script())


def test_a_page_is_written_as_html_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"page\.txt: the page is an HTML file: end the name in \.html"):
        regard.attention_map(torch.randn(2, 3), torch.randn(2, 3)).look(tmp_path / "page.txt")


def test_a_file_of_the_user_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mine.html"
    path.write_text("my own page", "utf-8")
    seen = regard.attention_map(torch.randn(2, 3), torch.randn(2, 3))
    with pytest.raises(
        ConfigError, match=r"mine\.html: this file exists and was not drawn by regard: give another name"
    ):
        seen.look(path)
    assert path.read_text("utf-8") == "my own page"
    path.unlink()
    for _ in range(2):  # a page may be drawn anew
        seen.look(path)


@pytest.mark.parametrize(
    ("text", "own"),
    [
        # as versions wrote them that did not mark their pages: a run's, and a map's
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>an run: training</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><style>\n'
            ":root { color-scheme: light dark }</style></head>\n<body>\n<h1>an run</h1></body></html>\n",
            True,
        ),
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">\n'
            "<title>fr-en: le chat</title>\n<style>html,body{margin:0;min-height:100%}</style>\n</head>\n<body>\n"
            '<main id="regard"></main>\n</body>\n</html>\n',
            True,
        ),
        ("<!doctype html>\n<html><head><title>my plan: training</title></head><body>my own page</body></html>", False),
        ('<!doctype html>\n<html lang="en">\n<head>\n</head>\n<body>\n<main id="mine"></main>\n</body></html>', False),
        ('my notes: <main id="regard">', False),
    ],
)
def test_a_page_of_an_older_version_is_regards_own(tmp_path: Path, text: str, own: bool) -> None:
    path = tmp_path / "report.html"
    path.write_text(text, "utf-8")
    assert is_drawn(path) is own


def test_a_place_where_no_page_can_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = regard.attention_map(torch.randn(2, 3), torch.randn(2, 3)).look()
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(DataError, match=r"folder\.html: a folder; name a file in it"):
        page.save(tmp_path / "folder.html")
    with pytest.raises(DataError, match=r"page\.html: the folder .*none does not exist"):
        page.save(tmp_path / "none" / "page.html")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("regard.figures.files.write_text", full)
    with pytest.raises(DataError, match=r"page\.html: could not be written: No space left on device"):
        page.save(tmp_path / "page.html")


def test_a_weight_that_is_no_number_has_a_colour_of_its_own() -> None:
    weights = torch.tensor([[0.25, 0.75], [float("nan"), float("nan")]])
    drawn = AttentionMap.from_weights(weights).look().still
    line = THEMES["light"].line
    assert drawn.count(f'fill="{line}"') == 2
    assert "nan" not in drawn.lower()


def test_the_size_is_told_before_it_is_written(tmp_path: Path) -> None:
    page = regard.attention_map(torch.randn(2, 3), torch.randn(2, 3)).look(tmp_path / "page.html")
    assert page.size == (tmp_path / "page.html").stat().st_size
    assert page.html() == (tmp_path / "page.html").read_text(encoding="utf-8")  # the same page, byte for byte


def test_144_heads_at_128_tokens_take_at_most_8_mb() -> None:
    made = torch.Generator().manual_seed(1)
    from regard.attention.maps.page import page_of_maps

    layers = {
        f"layers.{n}": regard.attention_map(
            torch.randn(12, 128, 64, generator=made), torch.randn(12, 128, 64, generator=made)
        )
        for n in range(12)
    }
    assert page_of_maps(layers, "twelve layers").size < 8e6


def test_a_notebook_shows_a_frame_and_a_picture_without_scripts() -> None:
    shown = regard.attention_map(torch.randn(2, 3), torch.randn(2, 3)).look()._repr_mimebundle_()
    assert shown["text/html"].startswith("<iframe srcdoc=")
    assert "allow-same-origin" not in shown["text/html"]
    assert "<svg" in shown["image/svg+xml"]


def test_half_of_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    seen = AttentionMap.from_weights(torch.eye(2), query_tokens=["\ud83d", "b"], key_tokens=["a", "\ude00"])
    page = seen.look(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    document = json.loads(text.partition('id="document">')[2].partition("</script>")[0])
    assert list(document["runs"][0]["sequences"].values()) == [["\ufffd", "b"], ["a", "\ufffd"]]
    assert json.loads(page.widget().document)["runs"] == document["runs"]
    assert page.size == len(text.encode("utf-8"))


def test_numbers_that_json_does_not_have_are_null() -> None:
    page = Page({"title": "a", "runs": [{"score": float("-inf"), "p": [float("nan"), 0.5]}]}, {})
    held = json.loads(re.search(r'id="document">(.*?)</script>', page.html())[1])
    assert held["runs"] == [{"score": None, "p": [None, 0.5]}]


def test_a_page_without_a_picture_has_none() -> None:
    assert "image/svg+xml" not in Page({"title": "a", "runs": []}, {})._repr_mimebundle_()
