"""Tables of signed numbers, words and parts: one scale, every name, and files that open."""

import pytest
import torch

from drawn import check_opens, panels_of, words_of
from regard.figures.tables import draw_parts, draw_tables, draw_words

SIDES = ("site ↓", "head →")


def test_tables_share_one_scale_around_zero(tmp_path):
    tables = {"zero": torch.tensor([[1.0, -0.5]]), "mean": torch.tensor([[0.1, float("nan")]])}
    figure = draw_tables(tables, ["a"], ["0", "1"], SIDES, "title", tmp_path / "x.svg", label="change")
    check_opens(tmp_path / "x.svg")
    assert {axes.images[0].get_clim() for axes in panels_of(figure)} == {(-1.0, 1.0)}
    assert {"zero", "mean", "title", "change", "+1"} <= set(words_of(tmp_path / "x.svg"))


def test_blue_is_above_zero_and_red_below():
    (panel,) = panels_of(draw_tables({"": torch.tensor([[1.0, -1.0]])}, ["a"], ["0", "1"], SIDES))
    image = panel.images[0]
    above, below = image.cmap(image.norm(1.0)), image.cmap(image.norm(-1.0))
    assert above[2] > above[0]
    assert below[0] > below[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_table_of_words_has_layers_upwards(tmp_path, theme):
    values, words = [[0.1, 0.2], [0.8, 1.0]], [["le", "$x$"], ["the", "incomprehensibilities"]]
    figure = draw_words(values, words, ["embedding", "layer 1"], ["a", "b"], tmp_path / "x.svg", theme=theme)
    (panel,) = panels_of(figure)
    assert [label.get_text() for label in panel.get_yticklabels()] == ["layer 1", "embedding"]
    assert panel.images[0].get_array().tolist() == values[::-1]
    assert {"$x$", "incomprehen…"} <= set(words_of(tmp_path / "x.svg"))


@pytest.mark.parametrize("rest", [{}, {"bias": -0.5, "embedding": 2.0}])
@pytest.mark.parametrize("rows", [[], ["a", "b"]])
def test_parts_and_the_rest(tmp_path, rows, rest):
    draw_parts([[1.0, -2.0]] * len(rows), rows, ["x", "y"] if rows else [], rest, tmp_path / "x.svg", note="sum")
    words = words_of(tmp_path / "x.svg")
    assert {*rows, *rest, "sum"} <= set(words)
    assert ("+2.00" in words) == ("everything else: part of the logit" in words) == bool(rest)
