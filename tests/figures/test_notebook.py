"""Tables in a notebook."""

import re

import pytest
import torch

from regard import ShapeError
from regard.figures.notebook import table

ROWS = [["soft & hard", 1234567, 0.12345, True], ["−", torch.tensor(2), float("nan"), False]]


def test_cells_are_shown_as_words_numbers_and_answers() -> None:
    made = table(["name", "count", "share", "finite"], ROWS, ["", "", ".1%", ""])
    assert made.rows == [["soft & hard", "1,234,567", "12.3%", "yes"], ["−", "2", "", "no"]]
    assert made.numeric == [False, True, True, True]
    assert repr(made).splitlines()[1] == "soft & hard  1,234,567  12.3%     yes"
    assert table(["x"], [[-0.5]]).rows == [["−0.500"]]
    assert table(["x", "y"], []).rows == []


def test_the_html_has_every_cell_escaped() -> None:
    html = table(["a<b", "n"], [["<script>", 1.5], ["x", 2.5]])._repr_html_()
    assert re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", html) == ["a&lt;b", "n", "&lt;script&gt;", "1.500", "x", "2.500"]
    assert html.count("text-align:right") == 3


def test_rows_and_forms_of_another_length_are_refused() -> None:
    with pytest.raises(ShapeError, match="row 1 of the table has 1 cells, expected one for each of the 2 columns"):
        table(["a", "b"], [["x", 1], ["y"]])
    with pytest.raises(ShapeError, match="form has 1 entries for 2 columns"):
        table(["a", "b"], [], [".2f"])
