"""Figures: files that open again, words as text in an SVG, whatever the words are."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch
from PIL import Image

from regard.analysis.trace import Prediction, Trace, TraceStep
from regard.attention.maps.map import AttentionMap
from regard.errors import DataError
from regard.figures.heatmap import heatmap, save_heatmap, save_trace

ROWS, COLUMNS = ["the", "black", "cat"], ["le", "chat", "noir"]
WEIGHTS = [[0.9, 0.06, 0.04], [0.1, 0.15, 0.75], [0.05, 0.8, 0.15]]


def words_of(path):
    """The text of an SVG: one string per text element, in order."""
    root = ET.fromstring(path.read_bytes())
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def check_opens(path):
    raw = path.read_bytes()
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 100
            assert len(image.convert("RGB").getcolors(2**24)) > 2
    elif path.suffix == ".svg":
        assert words_of(path)
    else:
        assert raw.startswith(b"%PDF-")
        assert raw.rstrip().endswith(b"%%EOF")
        assert len(re.findall(rb"/Type /Page\b", raw)) == 1


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize("as_text", [True, False])
def test_files_open_again(tmp_path, ending, as_text):
    path = tmp_path / f"x{ending}"
    save_heatmap(WEIGHTS, ROWS, COLUMNS, str(path) if as_text else path, title="head 0")
    check_opens(path)


def test_an_svg_has_words_and_numbers_as_text(tmp_path):
    save_heatmap(WEIGHTS, ROWS, COLUMNS, tmp_path / "x.svg", title="head 3")
    words = words_of(tmp_path / "x.svg")
    assert [word for word in words if word in COLUMNS] == COLUMNS
    assert {"head 3", "attention weight", ".90", ".75", ".06"} <= set(words)
    assert [word for word in words if word in ROWS] == ROWS


def test_query_goes_down_and_key_across():
    axes = heatmap(WEIGHTS, ROWS, COLUMNS).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == COLUMNS
    assert [label.get_text() for label in axes.get_yticklabels()] == ROWS
    assert axes.images[0].get_array().tolist() == WEIGHTS
    assert axes.images[0].get_clim() == (0, 1)
    low, high = axes.get_ylim()
    assert low > high  # the first row is at the top
    numbers = {t.get_position(): t.get_text() for t in axes.texts}
    assert numbers[1, 2] == ".80"  # at key 1, query 2


def test_a_whole_weight_is_written_in_full_and_none_not_at_all():
    texts = [t.get_text() for t in heatmap([[1.0, 0.0]], ["a"], ["x", "y"]).axes[0].texts]
    assert texts == ["1.00"]


def test_the_same_figure_is_the_same_svg(tmp_path):
    for name in ("a.svg", "b.svg"):
        save_heatmap(WEIGHTS, ROWS, COLUMNS, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


WORDS = [
    "猫が好き", "고양이", "кошка", "काली", "แมว", "👩‍👩‍👧", "$x$", "$", r"\frac", r"$\frac$", "a_b^c", "<&>\"'",
    "", " ", "%", "#{}", "▁le", "Ġchat", "\U0001d4b3", "𓀀",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS, ids=ascii)
def test_any_word_is_text_in_an_svg(tmp_path, word):
    save_heatmap([[0.4, 0.6]], [word], [word, "b"], tmp_path / "x.svg")
    assert words_of(tmp_path / "x.svg").count(word) == 2 * bool(word)


@pytest.mark.parametrize("ending", [".png", ".pdf"])
def test_any_word_can_be_drawn(tmp_path, ending):
    size = len(WORDS)
    save_heatmap([[1 / size] * size] * size, WORDS, WORDS, tmp_path / f"x{ending}")
    check_opens(tmp_path / f"x{ending}")


@pytest.mark.parametrize("word", ["a\x01b", "\x0b", "\x7f", "a\nb", "\ufffe"], ids=ascii)
def test_words_with_control_characters_make_a_file_that_opens(tmp_path, word):
    for ending in (".svg", ".png"):
        save_heatmap([[1.0]], [word], ["b"], tmp_path / f"x{ending}")
        check_opens(tmp_path / f"x{ending}")


@pytest.mark.parametrize(
    ("word", "drawn"),
    [("שלום", "םולש"), ("שלום.", ".םולש"), ("ש$ל$ם", "ם$ל$ש"), ("אב $5", "$5 בא")],
)
def test_right_to_left_words_are_turned_round(tmp_path, word, drawn):
    save_heatmap([[1.0]], [word], ["x"], tmp_path / "x.svg")
    assert words_of(tmp_path / "x.svg").count(drawn) == 1


def test_arabic_letters_are_joined(tmp_path):
    save_heatmap([[1.0]], ["قط"], ["x"], tmp_path / "x.svg")
    initial_qaf, final_tah = "\ufed7", "\ufec2"
    assert final_tah + initial_qaf in words_of(tmp_path / "x.svg")


def test_sixty_words(tmp_path):
    names = [f"word{n}" for n in range(60)]
    weights = torch.rand(60, 60).softmax(-1).tolist()
    for ending in (".svg", ".png"):
        save_heatmap(weights, names, names, tmp_path / f"x{ending}")
        check_opens(tmp_path / f"x{ending}")
    words = words_of(tmp_path / "x.svg")
    assert all(words.count(name) == 2 for name in names)
    assert not any(re.fullmatch(r"\.\d\d", word) for word in words)  # too small to read
    with Image.open(tmp_path / "x.png") as image:
        assert max(image.size) < 6000


@pytest.mark.parametrize(("rows", "columns"), [([], []), ([], ["x"]), (["a"], [])])
@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_an_empty_matrix(tmp_path, rows, columns, ending):
    save_heatmap([[] for _ in rows], rows, columns, tmp_path / f"x{ending}")
    check_opens(tmp_path / f"x{ending}")


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 12), (12, 1)])
def test_narrow_shapes(tmp_path, rows, columns):
    names = "abcdefghijkl"
    save_heatmap([[0.5] * columns] * rows, names[:rows], names[:columns], tmp_path / "x.png")
    check_opens(tmp_path / "x.png")


@pytest.mark.parametrize(("name", "ending"), [("x.doc", "'.doc'"), ("x.txt", "'.txt'"), ("x", "without an ending")])
def test_an_unknown_ending_is_refused(tmp_path, name, ending):
    with pytest.raises(DataError, match=rf"{name}: cannot draw .*{ending}.*: end it in \.png, \.svg or \.pdf"):
        save_heatmap(WEIGHTS, ROWS, COLUMNS, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x\.png: the folder .*none does not exist"):
        save_heatmap(WEIGHTS, ROWS, COLUMNS, tmp_path / "none" / "x.png")


# the trace


def make_trace(token="cat", parts=True, site="decoder.cross", columns=3):
    split = (1.5, -0.75, 0.25) if parts else (None, None, None)
    predictions = [
        Prediction(token, 0.7, 1.0, *split),
        Prediction("b", 0.2, -2.0, *((-1.0, -1.5, 0.5) if parts else split)),
    ]
    weights, scores = ([0.2, 0.7, 0.1], [1.0, 2.25, 0.5]) if columns else ([], [])
    step = TraceStep(1, "<s>", token, "s_t", 1.0, scores, weights, 0.5, predictions)
    return Trace("le chat noir", COLUMNS, site, [0], [step, step])


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize("parts", [True, False])
def test_a_trace_opens_again(tmp_path, ending, parts):
    save_trace(make_trace(parts=parts), tmp_path / f"x{ending}")
    check_opens(tmp_path / f"x{ending}")


def test_a_trace_shows_weights_scores_and_candidates(tmp_path):
    save_trace(make_trace(), tmp_path / "x.svg")
    words = "\n".join(words_of(tmp_path / "x.svg"))
    for part in ("1. cat", "chat", "0.70", "e 2.2", "cat  0.70", "state", "context", "bias", "decoder.cross"):
        assert part in words


def test_a_trace_without_attention(tmp_path):
    save_trace(make_trace(site="", columns=0), tmp_path / "x.svg")
    assert "no attention" in " ".join(words_of(tmp_path / "x.svg"))


@pytest.mark.parametrize("token", ["$x$", r"$\frac$", "$", "猫", "[/]", "<&>"], ids=ascii)
def test_a_trace_of_any_token(tmp_path, token):
    save_trace(make_trace(token), tmp_path / "x.svg")
    assert words_of(tmp_path / "x.svg").count(f"{token}  0.70") == 2


def test_a_trace_of_a_right_to_left_token(tmp_path):
    save_trace(make_trace("שלום"), tmp_path / "x.svg")
    words = words_of(tmp_path / "x.svg")
    assert sum("שלום" in word for word in words) == 0
    assert sum("םולש" in word for word in words) == 4


def test_a_trace_of_nothing(tmp_path):
    save_trace(Trace("", [], "", [], []), tmp_path / "x.svg")
    assert "nothing to look at" in words_of(tmp_path / "x.svg")


# maps


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (5, 2, 3), (2, 9, 2, 3), (3, 0, 2), (0, 2, 3)])
def test_maps(tmp_path, shape):
    weights = torch.rand(shape)
    figure = AttentionMap.from_weights(weights).plot(tmp_path / "x.png")
    check_opens(tmp_path / "x.png")
    panels = [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]
    matrices = weights.reshape(-1, *shape[-2:]) if weights.numel() else []
    assert len(panels) == min(16, len(matrices))
    for axes, matrix in zip(panels, matrices, strict=False):
        torch.testing.assert_close(torch.tensor(axes.images[0].get_array().tolist()), matrix)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2"]


def test_maps_with_tokens():
    heads = AttentionMap.from_weights(torch.rand(2, 3, 3), query_tokens=ROWS, key_tokens=COLUMNS)
    for axes in heads.plot().axes[:2]:
        assert [label.get_text() for label in axes.get_yticklabels()] == ROWS
        assert [label.get_text() for label in axes.get_xticklabels()] == COLUMNS
