"""Figures: files that open again, words as text in an SVG, whatever the words are."""

import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import regard
from drawn import check_opens, panels_of, words_of
from regard.errors import ChoiceError, DataError, ShapeError
from regard.figures.heatmap import draw_heatmaps, heatmap, scale_of
from regard.figures.style import fonts

ROWS, COLUMNS = ["the", "black", "cat"], ["le", "chat", "noir"]
WEIGHTS = [[0.9, 0.06, 0.04], [0.1, 0.15, 0.75], [0.05, 0.8, 0.15]]


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize("as_text", [True, False])
def test_files_open_again(tmp_path, ending, as_text):
    path = tmp_path / f"x{ending}"
    heatmap(WEIGHTS, ROWS, COLUMNS, path=str(path) if as_text else path, title="head 0")
    check_opens(path)


def test_an_svg_has_words_and_numbers_as_text(tmp_path):
    heatmap(WEIGHTS, ROWS, COLUMNS, path=tmp_path / "x.svg", title="head 3")
    words = words_of(tmp_path / "x.svg")
    assert [word for word in words if word in COLUMNS] == COLUMNS
    assert {"head 3", "attention weight", ".90", ".75", ".06"} <= set(words)
    assert [word for word in words if word in ROWS] == ROWS


def test_query_goes_down_and_key_across():
    axes = heatmap(WEIGHTS, ROWS, COLUMNS).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == COLUMNS
    assert [label.get_text() for label in axes.get_yticklabels()] == ROWS
    torch.testing.assert_close(torch.tensor(axes.images[0].get_array().tolist()), torch.tensor(WEIGHTS))
    assert axes.images[0].get_clim() == (0, 1)
    low, high = axes.get_ylim()
    assert low > high  # the first row is at the top
    numbers = {t.get_position(): t.get_text() for t in axes.texts}
    assert numbers[1, 2] == ".80"  # at key 1, query 2


def test_a_whole_weight_is_written_in_full_and_none_not_at_all():
    texts = [t.get_text() for t in heatmap([[1.0, 0.0]], ["a"], ["x", "y"]).axes[0].texts]
    assert [text for text in texts if "→" not in text] == ["1.00"]


def test_the_same_figure_is_the_same_svg(tmp_path):
    for name in ("a.svg", "b.svg"):
        heatmap(WEIGHTS, ROWS, COLUMNS, path=tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


WORDS = [
    "猫が好き", "고양이", "кошка", "काली", "แมว", "👩‍👩‍👧", "$x$", "$", r"\frac", r"$\frac$", "a_b^c", "<&>\"'",
    "", " ", "%", "#{}", "▁le", "Ġchat", "\U0001d4b3", "𓀀",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS, ids=ascii)
def test_any_word_is_text_in_an_svg(tmp_path, word):
    heatmap([[0.4, 0.6]], [word], [word, "b"], path=tmp_path / "x.svg")
    assert words_of(tmp_path / "x.svg").count(word) == 2 * bool(word)


@pytest.mark.parametrize("ending", [".png", ".pdf"])
def test_any_word_can_be_drawn(tmp_path, ending):
    size = len(WORDS)
    heatmap([[1 / size] * size] * size, WORDS, WORDS, path=tmp_path / f"x{ending}")
    check_opens(tmp_path / f"x{ending}")


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg", ".eps"])
def test_a_word_with_a_byte_order_mark_is_drawn_without_it(tmp_path, ending):
    """Matplotlib's writer of PDF ends in an IndexError at U+FEFF."""
    regard.AttentionMap.from_weights(
        torch.eye(2), query_tokens=["a\ufeffb", "\ufeff"], key_tokens=["\ufeffa", "b"]
    ).plot(tmp_path / f"x{ending}", title="le \ufeffchat")
    assert (tmp_path / f"x{ending}").stat().st_size


@pytest.mark.parametrize("word", ["a\x01b", "\x0b", "\x7f", "a\nb", "\ufffe"], ids=ascii)
def test_words_with_control_characters_make_a_file_that_opens(tmp_path, word):
    for ending in (".svg", ".png"):
        heatmap([[1.0]], [word], ["b"], path=tmp_path / f"x{ending}")
        check_opens(tmp_path / f"x{ending}")


@pytest.mark.parametrize("word", ["שלום", "שלום.", "القطط", "אב $5", "abc אבג"])
def test_right_to_left_words_keep_their_logical_order(tmp_path, word):
    """A browser turns the text of an SVG itself, as matplotlib does what it draws."""
    heatmap([[1.0]], [word], ["x"], path=tmp_path / "x.svg")
    assert words_of(tmp_path / "x.svg").count(word) == 1


def test_hebrew_is_drawn_from_right_to_left(tmp_path):
    """Of an alef and three yods, which hang from the line above, only the alef reaches the ground: on the right."""
    (label,) = heatmap([[1.0]], ["אייי"], ["x"]).axes[0].get_yticklabels()
    figure = Figure(figsize=(2, 1), dpi=200)
    figure.text(0.1, 0.4, label.get_text(), fontsize=30, fontfamily=fonts())
    figure.savefig(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        rows, columns = np.nonzero(np.asarray(image.convert("L")) < 128)
    low = columns[rows > rows.max() - (rows.max() - rows.min()) // 5]
    assert low.min() > (columns.min() + columns.max()) / 2


def test_sixty_words(tmp_path):
    names = [f"word{n}" for n in range(60)]
    weights = torch.rand(60, 60).softmax(-1).tolist()
    for ending in (".svg", ".png"):
        heatmap(weights, names, names, path=tmp_path / f"x{ending}")
        check_opens(tmp_path / f"x{ending}")
    words = words_of(tmp_path / "x.svg")
    assert all(words.count(name) == 2 for name in names)
    assert len([word for word in words if re.fullmatch(r"\.\d+", word)]) < 4  # the legend's
    with Image.open(tmp_path / "x.png") as image:
        assert max(image.size) < 6000


@pytest.mark.parametrize(("rows", "columns"), [([], []), ([], ["x"]), (["a"], [])])
@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_an_empty_matrix(tmp_path, rows, columns, ending):
    heatmap([[] for _ in rows], rows, columns, path=tmp_path / f"x{ending}")
    check_opens(tmp_path / f"x{ending}")


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 12), (12, 1)])
def test_narrow_shapes(tmp_path, rows, columns):
    names = "abcdefghijkl"
    heatmap([[0.5] * columns] * rows, names[:rows], names[:columns], path=tmp_path / "x.png")
    check_opens(tmp_path / "x.png")


@pytest.mark.parametrize(("name", "ending"), [("x.doc", "'.doc'"), ("x.txt", "'.txt'"), ("x", "without an ending")])
def test_an_unknown_ending_is_refused(tmp_path, name, ending):
    with pytest.raises(DataError, match=rf"{name}: cannot draw .*{ending}.*: end it in \.png, \.svg or \.pdf"):
        heatmap(WEIGHTS, ROWS, COLUMNS, path=tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x\.png: the folder .*none does not exist"):
        heatmap(WEIGHTS, ROWS, COLUMNS, path=tmp_path / "none" / "x.png")


@pytest.mark.parametrize("name", ["a\ud800", "\x1b[31m", r"$\frac{$", "n" * 20_000])
def test_names_of_every_kind_are_drawn(tmp_path, name):
    names = [name, "b"]
    draw_heatmaps(torch.full((2, 2, 2), 0.5), names, names, names=names, title=name, note=name, sides=(name, name),
                  remark=name, path=tmp_path / "x.svg")  # fmt: skip
    drawn = name.replace("\ud800", "\ufffd").replace("\x1b", "\ufffd")[:24]
    assert drawn in " ".join(words_of(tmp_path / "x.svg"))


def test_all_panels_share_one_scale_and_one_legend():
    """Equal attention has the same color beside a sharp head as beside another equal one."""
    weights = torch.stack([torch.eye(4), torch.full((4, 4), 0.25)])
    figure = draw_heatmaps(weights, [], [], names=["sharp", "equal"])
    assert {axes.images[0].get_clim() for axes in panels_of(figure)} == {(0.0, 1.0)}
    assert sum(axes.get_label() == "<colorbar>" for axes in figure.axes) == 1


@pytest.mark.parametrize(("largest", "top"), [(0.9, 1.0), (0.21, 1.0), (0.16, 0.2), (0.021, 0.025), (0.0, 1.0)])
def test_the_scale_ends_at_one_or_at_a_round_number(largest, top):
    norm, ticks, beyond = scale_of(torch.tensor([0.0, largest]), large=False)
    assert (norm.vmin, norm.vmax, ticks[-1], beyond) == (0, pytest.approx(top), pytest.approx(top), False)


def test_a_few_large_weights_do_not_hide_a_large_map():
    weights = torch.full((1, 200, 200), 0.004)
    weights[0, 0, 0] = 1.0
    norm, ticks, beyond = scale_of(weights, large=True)
    assert (ticks[-1], beyond) == (pytest.approx(0.004), True)
    assert norm(0.001) == pytest.approx(0.5)  # the root of a quarter
    assert "≥ .004" in [
        label.get_text()
        for axes in draw_heatmaps(weights, [], [], cell=(16, 16)).axes
        for label in axes.get_xticklabels()
    ]


def test_only_labels_that_meet_are_turned():
    def turns(columns):
        axes = heatmap([[0.5] * len(columns)] * 3, ROWS, columns).axes[0]
        return {label.get_rotation() for label in axes.get_xticklabels()}

    assert turns(["le", "chat", "noir"]) == {0}
    assert turns(["die", "Donaudampfschiff", "ist", "alt"]) == {0}
    assert turns(["Donaudampfschifffahrt", "Eisenbahngesellschaft", "ist"]) == {45}


def test_many_panels_are_of_a_page_s_width():
    figure = draw_heatmaps(torch.rand(12, 50, 50), [], [], names=[f"head {n}" for n in range(12)])
    width, height = figure.get_size_inches()
    assert width < 13
    assert height < 13
    ticks = [label.get_text() for label in panels_of(figure)[0].get_xticklabels()]
    assert ticks[0] == "0"
    assert ticks[1] in ("5", "10")  # as the font's width leaves room


def test_themes_differ_and_an_unknown_one_is_refused():
    light, dark = (heatmap(WEIGHTS, ROWS, COLUMNS, theme=theme) for theme in ("light", "dark"))
    assert light.get_facecolor() != dark.get_facecolor()
    assert light.axes[0].images[0].get_cmap() != dark.axes[0].images[0].get_cmap()
    with pytest.raises(ChoiceError, match=r"unknown theme 'drak': expected one of 'dark', 'light'"):
        heatmap(WEIGHTS, ROWS, COLUMNS, theme="drak")


def test_names_that_do_not_fit_the_weights_are_refused() -> None:
    for rows, columns in ((["the"], ["le", "chat", "noir"]), (["the", "cat"], ["le", "chat"])):
        with pytest.raises(ShapeError, match=r"heatmap: .* are named, and the weights are 1 × 2"):
            heatmap([[0.5, 0.5]], rows, columns)
