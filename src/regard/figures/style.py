"""One style for every figure: colors in a light and a dark theme, the scale of weights, and what text may be drawn.

The scale of weights is perceptual: lightness (OKLab, Ottosson 2020) is linear in the weight, from the paper's own
lightness at 0, so that twice the weight is twice the step away from nothing.
"""

import json
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import islice
from logging import ERROR, getLogger
from math import floor, log10
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from regard.errors import unknown

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

ThemeName = Literal["light", "dark"]
FONTS = (  # in this order, those that are installed; a letter is drawn by the first font that has it
    "Liberation Sans", "Arial", "Helvetica", "DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC",
    "Noto Sans CJK KR", "WenQuanYi Zen Hei", "Droid Sans Fallback", "IPAGothic", "Unifont", "Noto Sans Arabic",
    "Noto Sans Hebrew", "Noto Sans Devanagari",
)  # fmt: skip
STEPS = 256  # of a color scale
LINES, LONGEST = 24, 600  # of a text that is wrapped, and letters of a line, at most
Anchors = tuple[tuple[float, float, float], ...]  # lightness, chroma, hue in degrees, at equal distances


@dataclass(frozen=True)
class Theme:
    """The colors of a figure.

    Attributes:
        paper: behind everything.
        ink: names and titles.
        soft: what explains.
        line: frames and rules.
        weights: anchors of the scale from weight 0 to the largest.
        signed: anchors of the scale from the most negative number to the most positive.
        series: of curves, and of the parts of a bar.
    """

    paper: str
    ink: str
    soft: str
    line: str
    weights: Anchors
    signed: Anchors
    series: tuple[str, ...]


def _themes() -> dict[str, Theme]:
    """The themes in colours.json, which the page of `look` is built with too."""
    text = files("regard.figures").joinpath("colours.json").read_text(encoding="utf-8")
    raw: dict[str, dict[str, Any]] = json.loads(text, parse_int=float)
    return {name: Theme(**{field: _tuples(value) for field, value in one.items()}) for name, one in raw.items()}


def _tuples(value: Any) -> Any:
    """Lists as tuples, which a cache can hold."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


THEMES = _themes()


def theme_of(name: str) -> Theme:
    """The theme of a name.

    Raises:
        ChoiceError: there is no such theme.
    """
    if name not in THEMES:
        raise unknown("theme", name, get_args(ThemeName))
    return THEMES[name]


@cache
def scale(anchors: Anchors) -> NDArray[np.float64]:
    """256 colors `[256, 3]` in sRGB, linear between anchors in OKLab; chroma gives way where sRGB has none of it."""
    at = np.linspace(0, len(anchors) - 1, STEPS)
    hue = np.radians([one[2] for one in anchors])
    chroma = np.array([one[1] for one in anchors])
    places = np.arange(len(anchors))
    light = np.interp(at, places, [one[0] for one in anchors])
    a, b = (np.interp(at, places, chroma * turn(hue)) for turn in (np.cos, np.sin))
    low, high = np.zeros(STEPS), np.ones(STEPS)
    for _ in range(20):  # the largest share of the chroma that sRGB holds
        middle = (low + high) / 2
        fits = (np.abs(_linear(light, middle * a, middle * b) - 0.5) <= 0.5).all(-1)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    full = (np.abs(_linear(light, a, b) - 0.5) <= 0.5).all(-1)
    share = np.where(full, 1, low)
    linear = _linear(light, share * a, share * b).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _linear(light: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """OKLab to linear sRGB `[n, 3]` (Ottosson 2020)."""
    cones = np.stack([
        light + 0.3963377774 * a + 0.2158037573 * b,
        light - 0.1055613458 * a - 0.0638541728 * b,
        light - 0.0894841775 * a - 1.2914855480 * b,
    ], -1) ** 3  # fmt: skip
    found: NDArray[np.float64] = cones @ np.array([
        [4.0767416621, -1.2684380046, -0.0041960863],
        [-3.3077115913, 2.6097574011, -0.7034186147],
        [0.2309699292, -0.3413193965, 1.7076147010],
    ])  # fmt: skip
    return found


def colour(share: float, anchors: Anchors) -> tuple[float, float, float]:
    """The color of a share between 0 and 1; beyond, the nearest. What is no number has the first."""
    place = 0 if share != share else round(min(1.0, max(0.0, share)) * (STEPS - 1))
    red, green, blue = scale(anchors)[place].tolist()
    return red, green, blue


def as_hex(rgb: tuple[float, float, float]) -> str:
    """An sRGB color as HTML and SVG write it."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def luminance(rgb: tuple[float, float, float]) -> float:
    """Relative luminance of an sRGB color (WCAG 2.1)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ink_on(rgb: tuple[float, float, float]) -> str:
    """Black or white, whichever has the higher contrast with a ground (WCAG 2.1)."""
    return "#ffffff" if 1.05 / (luminance(rgb) + 0.05) > (luminance(rgb) + 0.05) / 0.05 else "#000000"


def colormap(anchors: Anchors, empty: str) -> "Colormap":
    """A scale as matplotlib takes it; `empty` is drawn where there is no number."""
    from matplotlib.colors import ListedColormap

    return ListedColormap(scale(anchors), "regard").with_extremes(bad=empty)


def round_up(value: float) -> float:
    """The smallest number not below a positive value that is 1, 1.5, 2, 2.5, 3, 4, 5, 6 or 8 times a power of ten."""
    power = 10.0 ** floor(log10(max(value, 1e-9)))
    return next(
        float(f"{step * power:.2g}")
        for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
        if step * power >= value * (1 - 1e-6)
    )


def shorten(number: float) -> str:
    """A number of a legend: 0, .05, 1."""
    return f"{number:g}".replace("0.", ".", 1) if 0 < abs(number) < 1 else f"{number:g}"


def visible(name: str) -> str:
    """A name as matplotlib takes it: what cannot be drawn replaced, and no dollar sign that begins a formula.

    Scripts that run from right to left stay in their logical order: matplotlib (3.11 and later) lays them out.
    """
    return _drawable(name).replace("$", r"\$")


def _drawable(name: str) -> str:
    """A name of a bounded length, with U+FFFD for what no font draws: control characters and lone surrogates.

    U+FEFF, which has no width, is left out: matplotlib's writer of PDF and PostScript fails on it.
    """
    return "".join(
        letter if letter.isprintable() or letter in " \n\t" or unicodedata.category(letter) == "Cf" else "\ufffd"
        for letter in cut(name.replace("\ufeff", ""), LONGEST)
    )


def cut(name: str, letters: int) -> str:
    """A name of so many letters at most, its end left out."""
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


@cache
def fonts() -> list[str]:
    """The installed ones of `FONTS`, and what matplotlib and browsers take for "sans-serif".

    Fonts that were installed after matplotlib made its list of them are added to it.
    """
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {font.fname for font in fontManager.ttflist}
    for path in findSystemFonts():
        if path not in known:
            with suppress(Exception):  # FreeType refuses some files, each in its own way
                fontManager.addfont(path)
    installed = {font.name for font in fontManager.ttflist}
    return [*(name for name in FONTS if name in installed), "sans-serif"]


@contextmanager
def quiet() -> Iterator[None]:
    """No lines in the log about fonts that have no bold letters: their plain ones are taken."""
    log = getLogger("matplotlib.font_manager")
    before = log.level
    log.setLevel(ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@lru_cache(4096)
def wide(text: str, size: float, bold: bool = False) -> float:
    """How wide a text is, in inches: of several lines, the widest."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family=fonts(), size=size, weight="bold" if bold else "normal")
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that no font has: saving says so
        renderer: Any = RendererAgg(1, 1, 72)  # type: ignore[no-untyped-call]
        lines = [
            renderer.get_text_width_height_descent(line or " ", font, ismath=False)
            for line in _drawable(text).split("\n")
        ]
    return float(max(line[0] for line in lines)) / 72


def wrapped(text: str, size: float, room: float, bold: bool = False) -> list[str]:
    """A text in lines that are not wider than `room` inches, broken between words; in a word longer than that.

    There are at most `LINES`; of a longer text, the last one ends in an ellipsis.
    """
    lines = list(islice(_broken(text, size, room, bold), LINES + 1))
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], cut(f"{lines[LINES - 1]}…", len(lines[LINES - 1]))]


def _broken(text: str, size: float, room: float, bold: bool) -> Iterator[str]:
    line = ""
    for word in text.split():
        joined = f"{line} {word}"
        if line and _fitting(joined, size, room, bold) == len(joined):
            line = joined
            continue
        if line:
            yield line
        while (fits := _fitting(word, size, room, bold)) < len(word):
            yield word[:fits]
            word = word[fits:]
        line = word
    if line:
        yield line


def _fitting(text: str, size: float, room: float, bold: bool) -> int:
    """How many letters of a text, one at least, fit into `room` inches; those far beyond are not measured."""
    text = text[:LONGEST]
    low, high = 1, 64
    while high < len(text) and wide(text[:high], size, bold) <= room:
        low, high = high, 2 * high
    if high >= len(text) and wide(text, size, bold) <= room:
        return len(text)
    high = min(high, len(text))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if wide(text[:middle], size, bold) <= room else (low, middle)
    return low
