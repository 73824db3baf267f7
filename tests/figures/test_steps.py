"""A decoding worked through shows weights, scores and candidates, whatever the tokens are."""

from dataclasses import replace

import pytest
from PIL import Image

from drawn import check_opens, words_of
from regard.analysis.trace import Prediction, Trace, TraceStep
from regard.figures.files import POINTS, save_figure
from regard.figures.steps import draw_trace

COLUMNS = ["le", "chat", "noir"]


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
    draw_trace(make_trace(parts=parts), tmp_path / f"x{ending}")
    check_opens(tmp_path / f"x{ending}")


def test_a_trace_shows_weights_scores_and_candidates(tmp_path):
    draw_trace(make_trace(), tmp_path / "x.svg")
    words = "\n".join(words_of(tmp_path / "x.svg"))
    for part in ("1. cat", "chat", "0.70", "e 2.2", "cat  0.70", "state", "context", "bias", "decoder.cross"):
        assert part in words


def test_a_trace_without_attention(tmp_path):
    draw_trace(make_trace(site="", columns=0), tmp_path / "x.svg")
    assert "no attention" in " ".join(words_of(tmp_path / "x.svg"))


@pytest.mark.parametrize("token", ["$x$", r"$\frac$", "$", "猫", "[/]", "<&>"], ids=ascii)
def test_a_trace_of_any_token(tmp_path, token):
    draw_trace(make_trace(token), tmp_path / "x.svg")
    assert words_of(tmp_path / "x.svg").count(f"{token}  0.70") == 2


def test_a_trace_of_a_right_to_left_token(tmp_path):
    draw_trace(make_trace("שלום"), tmp_path / "x.svg")
    words = words_of(tmp_path / "x.svg")
    assert sum("שלום" in word for word in words) == 4


def test_a_trace_of_nothing(tmp_path):
    draw_trace(Trace("", [], "", [], []), tmp_path / "x.svg")
    assert "nothing to look at" in words_of(tmp_path / "x.svg")


def test_a_long_trace_has_no_numbers_in_its_cells_and_a_bounded_picture(tmp_path):
    short = make_trace()
    step, count = short.steps[0], 120
    row = replace(step, scores=[0.5] * count, weights=[1 / count] * count)
    figure = draw_trace(replace(short, source_tokens=["le"] * count, steps=[row] * 60))
    assert sum(text.get_text().startswith("0.01\n") for text in figure.axes[0].texts) == 0
    save_figure(figure, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width * picture.height < 1.2 * POINTS
