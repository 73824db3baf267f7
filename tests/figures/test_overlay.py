"""Strips, films, spectrograms and their terminal forms show every word with its own light."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drawn import panels_of
from regard.errors import ShapeError
from regard.figures.overlay import DARK, draw_film, draw_sound, draw_strip, square_side, strip, timeline


def test_a_strip_is_light_where_the_word_looked(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 32), "white")
    weights = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 1.0]])
    figure = draw_strip(picture, ["a", "b"], weights, tmp_path / "s.png")
    panels = panels_of(figure)
    heads = [[text.get_text() for text in axes.texts if text.get_text()] for axes in panels]
    assert heads == [["the picture"], ["a", ".70"], ["b", "1.00"]]
    first, second = (np.asarray(axes.get_images()[0].get_array()) for axes in panels[1:])
    middle = first.shape[0] // 4
    assert first[middle, middle, 0] == pytest.approx(DARK + (1 - DARK) * 0.7**0.5, abs=0.01)  # on the scale of both
    assert second[middle, middle, 0] == pytest.approx(DARK, abs=0.01)
    assert second[-middle, -middle, 0] == pytest.approx(1.0, abs=0.01)
    cells = {round(float(v), 2) for v in first[:, :, 0].ravel()}
    assert len(cells) == 2  # exact cells: no shade between
    blended = draw_strip(picture, ["a"], weights[:1], smooth=True)
    shades = np.asarray(panels_of(blended)[1].get_images()[0].get_array())[:, :, 0]
    assert len({round(float(v), 2) for v in shades.ravel()}) > 9
    assert any("smoothed" in text.get_text() for text in blended.texts)


def test_many_words_are_cut_and_said_so() -> None:
    figure = draw_strip(Image.new("RGB", (8, 8)), ["w"] * 60, torch.rand(60, 4))
    assert any("the first 48 of 60 words" in text.get_text() for text in figure.texts)


def test_a_film_has_a_row_for_every_word(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), "white")] * 3
    weights = torch.zeros(2, 12)
    weights[0, 5] = 1.0  # frame 1, upper right
    figure = draw_film(frames, ["a", "b"], weights, tmp_path / "f.png")
    panels = panels_of(figure)
    assert len(panels) == 9
    lit = np.asarray(panels[4].get_images()[0].get_array())
    assert lit[10, -10, 0] > 0.99
    assert np.asarray(panels[3].get_images()[0].get_array()).max() < 0.25


def test_a_sound_shares_one_line_of_time(tmp_path: Path) -> None:
    weights = torch.eye(2, 5)
    figure = draw_sound(
        torch.randn(16_000), torch.randn(10, 97), ["yes", "no"], weights, torch.arange(5) * 20.0 + 10,
        tmp_path / "s.svg", start=30.0,
    )  # fmt: skip
    assert {axes.get_xlim() for axes in figure.axes[:3]} == {(30.0, 31.0)}
    assert [label.get_text() for label in figure.axes[2].get_yticklabels()] == ["yes", "no"]


def test_the_terminal_lights_the_same_cells() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    made = strip(["cat"], weights, 40)
    assert made.plain.splitlines()[0] == "cat"
    grounds = [str(span.style).split()[-1] for span in made.spans]
    assert grounds == ["color(232)", "color(255)", "color(232)", "color(232)"]
    assert made.plain.splitlines()[1].rstrip() == "  ██"  # what is seen without colors
    line = timeline(["yes", "go"], torch.eye(2, 20), 30)
    assert line.plain.splitlines()[1].startswith("go  ")
    lit = [n for n, span in enumerate(line.spans) if str(span.style).endswith("on color(255)")]
    assert lit == [0, 21]


def test_only_squares() -> None:
    assert square_side(144) == 12
    with pytest.raises(ShapeError, match="12 cells are no square grid"):
        square_side(12)


def test_a_drawing_says_that_it_is_smoothed_or_that_nothing_was_said(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    draw_strip(picture, ["cat"], torch.eye(1, 4), tmp_path / "a.svg", smooth=True, title="what is it? → a cat")
    drawn = (tmp_path / "a.svg").read_text()
    assert "smoothed" in drawn
    assert "what is it? → a cat" in drawn
    draw_strip(picture, [], torch.zeros(0, 4), tmp_path / "b.svg")
    assert "nothing said" in (tmp_path / "b.svg").read_text()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_drawn(wrong: float) -> None:
    weights = torch.tensor([[wrong, 0.5, 0.25, 0.25]])
    picture = Image.new("RGB", (32, 32), "white")
    draw_strip(picture, ["a"], weights)
    draw_film([picture], ["a"], weights)
    assert "a" in strip(["a"], weights).plain
    assert "a" in timeline(["a"], weights).plain
