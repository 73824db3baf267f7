"""The terminal's grid shows words and numbers, the darkest for the largest."""

import io
import re

import pytest
from rich.console import Console

from regard.figures.style import THEMES, colour
from regard.figures.terminal import grid


def rgb(weight):
    return tuple(round(255 * part) for part in colour(weight, THEMES["light"].weights))


def shown(table, colour=False, width=200):
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=colour, color_system="truecolor" if colour else None).print(table)
    return file.getvalue()


def test_words_and_numbers_stand_in_their_places():
    lines = shown(grid([[0.25, 0.75], [1.0, 0.0]], ["the", "cat"], ["le", "chat"])).splitlines()
    assert [line.split() for line in lines] == [["le", "chat"], ["the", "0.25", "0.75"], ["cat", "1.00", "0.00"]]


@pytest.mark.parametrize("word", ["[bold]", "[/]", "猫", "القط", "$x$", ":smile:", "👩‍👩‍👧", ""])
def test_any_word_is_shown_as_it_is(word):
    text = shown(grid([[0.5]], [word], [word]))
    assert text.count(word) >= 2


def test_colours_by_hand():
    table = grid([[0.0, 0.5, 1.0]], ["a"], ["x", "y", "z"])
    text = shown(table, colour=True)
    for weight in (0.0, 0.5, 1.0):
        assert "48;2;{};{};{}".format(*rgb(weight)) in text


def styles(table):
    return [[str(cell.style) for cell in column.cells] for column in table.renderables[0].columns[1:]]


def test_the_largest_of_a_row_is_bold():
    bold = [
        [style.startswith("bold") for style in column]
        for column in styles(grid([[0.2, 0.8], [0.5, 0.5], [0.0, 0.0]], "abc", "xy"))
    ]
    assert bold == [[False, True, False], [True, True, False]]


def test_numbers_outside_are_drawn_as_the_nearest():
    assert styles(grid([[-1.0, 2.0]], "a", "xy"))[0][0].endswith("rgb({},{},{})".format(*rgb(0.0)))
    assert styles(grid([[-1.0, 2.0]], "a", "xy"))[1][0].endswith("rgb({},{},{})".format(*rgb(1.0)))


@pytest.mark.parametrize(("rows", "columns"), [([], []), ([], ["x"]), (["a"], [])])
def test_nothing_to_show(rows, columns):
    shown(grid([[] for _ in rows], rows, columns))


def test_rows_without_weights_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        grid([[1.0]], ["a", "b"], ["x"])


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize("word", ["mot{}", "猫{}", "incompréhensible{}"])
def test_no_word_is_lost_where_there_is_little_room(width, word):
    columns = [word.format(n) for n in range(18)]
    weights = [[(i + n) % 18 / 18 for n in range(18)] for i in range(3)]
    text = shown(grid(weights, ["the", "black", "cat"], columns, width), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    heads = re.findall(r"[^\s\d.]\S*", text.replace("the ", "").replace("black ", "").replace("cat ", ""))
    assert len(heads) == 18
    assert heads == columns or all(head.endswith("…") for head in heads)
    assert sorted(re.findall(r"\d\.\d\d", text)) == sorted(f"{x:.2f}" for row in weights for x in row)
    assert text.count("black") == text.count("cat") > 0


def test_a_grid_that_fits_is_one_block():
    assert len(grid([[0.5] * 9], ["the"], ["word"] * 9, 80).renderables) == 1
