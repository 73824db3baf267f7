"""The terminal's grid shows words and numbers, the darkest for the largest."""

import io

import pytest
from rich.console import Console

from regard.figures.terminal import DARK, LIGHT, grid


def shown(table, colour=False):
    file = io.StringIO()
    Console(file=file, width=200, force_terminal=colour, color_system="truecolor" if colour else None).print(table)
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
    middle = tuple(round((a + b) / 2) for a, b in zip(LIGHT, DARK, strict=True))
    text = shown(table, colour=True)
    for colour in (LIGHT, middle, DARK):
        assert "48;2;{};{};{}".format(*colour) in text


def styles(table):
    return [[str(cell.style) for cell in column.cells] for column in table.columns[1:]]


def test_the_largest_of_a_row_is_bold():
    bold = [
        [style.startswith("bold") for style in column]
        for column in styles(grid([[0.2, 0.8], [0.5, 0.5], [0.0, 0.0]], "abc", "xy"))
    ]
    assert bold == [[False, True, False], [True, True, False]]


def test_numbers_outside_are_drawn_as_the_nearest():
    assert styles(grid([[-1.0, 2.0]], "a", "xy"))[0][0].endswith("rgb({},{},{})".format(*LIGHT))
    assert styles(grid([[-1.0, 2.0]], "a", "xy"))[1][0].endswith("rgb({},{},{})".format(*DARK))


@pytest.mark.parametrize(("rows", "columns"), [([], []), ([], ["x"]), (["a"], [])])
def test_nothing_to_show(rows, columns):
    shown(grid([[] for _ in rows], rows, columns))


def test_rows_without_weights_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        grid([[1.0]], ["a", "b"], ["x"])
