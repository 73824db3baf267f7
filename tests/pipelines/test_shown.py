"""What results are called in figures, and what a notebook shows of them."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch

import regard
from regard.pipelines.generation import Alignment
from regard.pipelines.result import shorten


@pytest.fixture(scope="module")
def made():
    return regard.load("fr-en-rnn")("le <chat> noir")


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_an_alignment_names_model_sentence_head_and_why() -> None:
    found = Alignment(
        torch.eye(2), ["le", "chat"], ["the", "cat"], "decoder.cross", [1], "fr-en: le chat → the cat", True
    )
    shown = " ".join(texts(found.plot()))
    assert "fr-en: le chat → the cat" in shown
    assert "decoder.cross, head 1: the head that aligned best on development data" in shown
    assert "aligned best" not in replace(found, chosen=False).why
    assert replace(found, heads=[0, 1]).why.endswith(
        "mean of heads 0, 1: the heads that aligned best on development data"
    )
    assert "my own" in texts(found.plot(title="my own"))
    assert ET.fromstring(found._repr_svg_()).tag.endswith("svg")
    assert replace(found, matrix=torch.zeros(0, 2), target=[])._repr_svg_() is None


def test_a_translation_shows_itself(made) -> None:
    page = made._repr_html_()
    assert "le &lt;chat&gt; noir" in page
    assert f"<b>{made.text}</b>".replace("<b>", "").split("</b>")[0] in re.sub("<[^>]*>", "", page).replace(
        "&lt;", "<"
    ).replace("&gt;", ">")
    assert page.count("<svg") == 1
    assert "aligned best on development data" in re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page))


def test_maps_of_a_result_are_named_by_model_text_and_site(made) -> None:
    (site,) = made.attention
    figure = made.attention[site].plot()
    assert f"fr-en-rnn: le <chat> noir → {made.text}" in " ".join(texts(figure))
    assert any(text.startswith(f"{site} · ") for text in texts(figure))


def test_what_is_long_is_shortened() -> None:
    assert shorten("a  b\nc", 9) == "a b c"
    assert shorten("one two three", 8) == "one two…"
