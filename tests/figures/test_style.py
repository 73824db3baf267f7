"""The scale of weights is perceptual, text is measured and wrapped, fonts that are new are found."""

import numpy as np
import pytest

from regard.figures import style
from regard.figures.style import (
    LINES,
    LONGEST,
    THEMES,
    colour,
    cut,
    fonts,
    ink_on,
    luminance,
    round_up,
    scale,
    shorten,
    visible,
    wide,
    wrapped,
)


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB colors, an independent measure."""
    shares = np.array([luminance(tuple(map(float, one))) for one in rgb])
    return np.where(shares > 0.008856, 116 * np.cbrt(shares) - 16, 903.3 * shares)


@pytest.mark.parametrize("theme", THEMES)
def test_a_larger_weight_is_a_step_further_from_the_paper(theme):
    steps = np.diff(lightness(scale(THEMES[theme].weights)))
    assert (steps < 0).all() if theme == "light" else (steps > 0).all()
    parts = np.abs(steps.reshape(-1, 15).sum(1))  # 17 parts of the scale
    assert parts.max() < 1.5 * parts.min()


@pytest.mark.parametrize("theme", THEMES)
def test_zero_is_the_lightness_of_the_paper(theme):
    paper = THEMES[theme].paper
    rgb = tuple(int(paper[n : n + 2], 16) / 255 for n in (1, 3, 5))
    both = lightness(np.array([rgb, colour(0.0, THEMES[theme].weights)]))
    assert abs(both[0] - both[1]) < 6
    middle = lightness(np.array([rgb, colour(0.5, THEMES[theme].signed)]))
    assert abs(middle[0] - middle[1]) < 6


@pytest.mark.parametrize("theme", THEMES)
def test_text_has_contrast(theme):
    def contrast(one, other):
        light, dark = sorted((luminance(one), luminance(other)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    def rgb(name):
        return tuple(int(name[n : n + 2], 16) / 255 for n in (1, 3, 5))

    own = THEMES[theme]
    assert contrast(rgb(own.ink), rgb(own.paper)) > 12
    assert contrast(rgb(own.soft), rgb(own.paper)) > 4.5
    for ground in map(tuple, scale(own.weights)[::17].tolist()):
        assert contrast(rgb(ink_on(ground)), ground) > 4.5


def test_numbers_of_legends():
    assert [round_up(x) for x in (1.0, 0.9, 0.17, 0.2, 0.0021, 3.2)] == [1, 1, 0.2, 0.2, 0.0025, 4]
    assert [shorten(x) for x in (0.0, 0.05, 1.0, 0.002, -0.5)] == ["0", ".05", "1", ".002", "-.5"]
    assert cut("abcdef", 4) == "abc…"


def test_lines_fit():
    text = "Quand il est arrivé à la gare, le dernier train était déjà parti"
    lines = wrapped(text, 9.0, 1.5)
    assert " ".join(lines) == text
    assert len(lines) > 2
    assert all(wide(line, 9.0) <= 1.5 for line in lines)
    assert "".join(wrapped("m" * 60, 9.0, 1.0)) == "m" * 60
    assert wrapped("", 9.0, 1.0) == []


@pytest.mark.parametrize("text", ["a" * 20_000, "a " * 20_000])
def test_a_long_text_is_wrapped_without_measuring_the_rest_of_it(monkeypatch, text):
    measured = []
    monkeypatch.setattr(style, "wide", lambda text, *_: measured.append(len(text)) or wide(text, 9.0))
    lines = wrapped(text, 9.0, 1.5)
    assert len(lines) == LINES
    assert lines[-1].endswith("…")
    assert sum(measured) < 100 * LINES * max(map(len, lines))
    assert all(wide(line, 9.0) <= 1.5 for line in lines[:-1])


def test_what_no_font_draws_is_replaced_wherever_text_is_measured_or_drawn():
    assert visible("a\ud800\x1b$") == "a\ufffd\ufffd\\$"
    assert wide("a\ud800", 9.0) == wide("a\ufffd", 9.0)
    assert wrapped("\ud800 b", 9.0, 1.0) == ["\ud800 b"]
    assert visible("a" * 10_000) == "a" * (LONGEST - 1) + "…"


def test_a_font_that_was_installed_since_is_found(monkeypatch):
    from matplotlib import font_manager

    file = font_manager.findfont("DejaVu Sans")
    held = [font for font in font_manager.fontManager.ttflist if "DejaVu Sans" not in font.name]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", held)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [file])
    fonts.cache_clear()
    try:
        assert "DejaVu Sans" in fonts()
    finally:
        fonts.cache_clear()
