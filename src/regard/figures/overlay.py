"""Figures of where words looked: a strip of pictures, the spectrogram of a sound, and both in the terminal.

All words of a figure share one scale from 0, on which brightness is linear in the root of the weight: the small weights
of words that looked everywhere stay visible, and a word that looked nowhere is dark.
"""

from collections.abc import Sequence
from math import ceil, isqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.text import Text
from torch import Tensor

from regard.errors import ShapeError, harmless
from regard.figures.files import finished
from regard.figures.heatmap import scale_of
from regard.figures.sheet import NAME, SMALL, Sheet, name_rows, row_names, sheet
from regard.figures.style import Anchors, colormap, cut, fonts, round_up, shorten, theme_of, visible, wide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 6  # panels side by side
DARK = 0.18  # brightness of a cell without weight
BRIGHTNESS: Anchors = ((0.30, 0.0, 0.0), (1.0, 0.0, 0.0))  # of cells, in the legend
WORDS = 48  # of a strip at most
SIDE = 384  # points of a panel's picture
PANEL = 1.55  # inches of a panel's picture
SHADES = 24  # of gray in the terminal
GLYPHS = " ░▒▓█"  # that show where there is no color
RATE, FRAMES = 16_000, 100  # samples and frames of a second


def draw_strip(
    picture: Image.Image, words: Sequence[str], weights: Tensor, path: str | Path | None = None, smooth: bool = False,
    *, title: str = "", note: str = "", theme: str = "light",
) -> "Figure":  # fmt: skip
    """The picture, then once more for each word, bright where the word looked and dark where not.

    Args:
        picture: square, as the model saw it.
        words: of the text.
        weights: `[words, cells]`, row by row; the largest weight of each word stands beside it.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
        smooth: blend the cells into each other, which the figure says; exact cells otherwise.
        title: above the figure.
        note: under the title.
        theme: "light" or "dark".
    """
    weights = _finite(weights)
    side, top = square_side(weights.shape[-1]), _top(weights)
    shown = list(zip(words, weights, strict=True))[:WORDS]
    count = len(shown) + 1
    across = ceil(count / ceil(count / ACROSS))
    more = f"the first {WORDS} of {len(words)} words" if len(words) > WORDS else ""
    made = sheet(
        theme_of(theme), [PANEL] * across, [PANEL] * ceil(count / across), title=title,
        note=" · ".join(one for one in (note, more) if one), head=0.24, gap=0.12,
    )  # fmt: skip
    panels = [axes for row in made.axes for axes in row]
    points = _points(picture)
    for number, axes in enumerate(panels):
        if number >= count:
            axes.set_visible(False)
        elif not number:
            axes.imshow(points, origin="upper")
            _head(made, axes, "the picture", made.theme.soft)
        else:
            word, row = shown[number - 1]
            axes.imshow(points * _light(row / top, side, smooth)[..., None], origin="upper")
            most = f"{float(row.max()) if row.numel() else 0.0:.2f}".removeprefix("0")
            _head(made, axes, cut(word, 20), made.theme.ink, most)
    _legend(made, top, smooth, bool(words), "the number above a panel: its largest weight" if across > 2 else "")
    return finished(made.figure, path)


def draw_film(
    frames: Sequence[Image.Image], words: Sequence[str], weights: Tensor, path: str | Path | None = None,
    smooth: bool = False, *, title: str = "", note: str = "", theme: str = "light",
) -> "Figure":  # fmt: skip
    """The frames of a moving picture, then once more for each word, bright where and when the word looked.

    Args:
        frames: square, as the model saw them.
        words: of the text.
        weights: `[words, frames · cells]`, frame by frame, row by row.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
        smooth: blend the cells of a frame into each other; exact cells otherwise.
        title: above the figure.
        note: under the title.
        theme: "light" or "dark".
    """
    weights = _finite(weights)
    side, top, panel = square_side(weights.shape[-1] // len(frames)), _top(weights), 1.15
    shown = ["the film", *(cut(word, 20) for word in words[:WORDS])]
    more = f"the first {WORDS} of {len(words)} words" if len(words) > WORDS else ""
    made = sheet(
        theme_of(theme), [panel] * len(frames), [panel] * len(shown), title=title,
        note=" · ".join(one for one in (note, more) if one), left=max(wide(one, NAME) for one in shown) + 0.1,
        above=0.22, gap=0.07,
    )  # fmt: skip
    for number, frame in enumerate(frames):
        points = _points(frame)
        made.axes[0][number].imshow(points, origin="upper")
        _head(made, made.axes[0][number], f"frame {number + 1}", made.theme.soft)
        for row, cells in zip(made.axes[1:], weights, strict=False):
            own = cells.unflatten(0, (len(frames), side * side))[number] / top
            row[number].imshow(points * _light(own, side, smooth)[..., None], origin="upper")
    for word, row in zip(shown, made.axes, strict=True):
        ink = made.theme.soft if row is made.axes[0] else made.theme.ink
        row[0].annotate(visible(word), (0, 0.5), (-5, 0), "axes fraction", "offset points", ha="right", va="center",
                        fontsize=NAME, color=ink, fontfamily=fonts())  # fmt: skip
    _legend(made, top, smooth, bool(words))
    return finished(made.figure, path)


def _points(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255


def _finite(weights: Tensor) -> Tensor:
    """Weights as light: none where a weight is negative or not finite."""
    return weights.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)


def _top(weights: Tensor) -> float:
    """The end of the scale of all words."""
    largest = float(weights.max()) if weights.numel() else 0.0
    return round_up(largest) if largest > 0 else 1.0


def _head(made: Sheet, axes: "Axes", name: str, ink: str, number: str = "") -> None:
    """A panel's name and number above it."""
    how = {"xycoords": "axes fraction", "textcoords": "offset points", "fontfamily": fonts()}
    axes.annotate(visible(name), (0, 1), (0, 4), fontsize=NAME, color=ink, **how)  # type: ignore[arg-type]
    axes.annotate(
        number, (1, 1), (0, 4), ha="right", fontsize=SMALL, color=made.theme.soft, **how  # type: ignore[arg-type]
    )  # fmt: skip


def _legend(made: Sheet, top: float, smooth: bool, said: bool, note: str = "") -> None:
    """The scale of brightness, or that there are no words."""
    from matplotlib.colors import PowerNorm

    if not said:
        made.write(made.left, made.below - 0.16, "nothing said", SMALL, va="top")
        return
    kind = "smoothed" if smooth else "exact cells"
    ticks = [0.0, top / 10, top / 2, top]
    made.legend(
        PowerNorm(0.5, 0, top), BRIGHTNESS, f"bright: square root of the attention weight ({kind})", ticks,
        [shorten(t) for t in ticks], note,
    )  # fmt: skip


def _light(shares: Tensor, side: int, smooth: bool) -> np.ndarray:
    """How bright each point is, from cells' shares of the scale."""
    light = DARK + (1 - DARK) * shares.clamp(0, 1).sqrt().reshape(side, side).numpy()
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(light.astype(np.float32)).resize((SIDE, SIDE), how)).clip(0, 1)


def draw_sound(
    samples: Tensor, mel: Tensor, words: Sequence[str], weights: Tensor, frames: Tensor,
    path: str | Path | None = None, start: float = 0.0, *, title: str = "", note: str = "", theme: str = "light",
) -> "Figure":  # fmt: skip
    """The wave, the spectrogram and where each word looked, over one line of time in seconds.

    Args:
        samples: at 16 kHz.
        mel: the log-mel spectrogram `[bands, frames]`.
        words: of the text.
        weights: `[words, S]` over the memory's moments.
        frames: `[S]`, where the moments stand, in frames of 10 ms.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
        start: seconds before the sound, where it is a piece of a longer one.
        title: above the figure.
        note: under the title.
        theme: "light" or "dark".
    """
    colours = theme_of(theme)
    seconds = len(samples) / RATE
    end = start + max(seconds, mel.shape[1] / FRAMES)
    pitch = 0.22 if len(words) <= 40 else 0.16
    names = row_names(words, len(words), pitch) if words else None
    left = max(wide("mel bands", SMALL) + 0.1, names.room if names else 0.0)
    made = sheet(
        colours, [min(12.0, max(4.6, 1.6 * seconds))], [0.7, 1.3, pitch * max(1, len(words))], title=title, note=note,
        left=left, gap=0.08, right=0.1, foot=0.8,
    )  # fmt: skip
    wave, spectrum, attending = (row[0] for row in made.axes)
    times = start + np.linspace(0, seconds, min(len(samples), 4000))
    positions = np.linspace(0, max(0, len(samples) - 1), len(times)).astype(int)
    wave.plot(times, samples.numpy()[positions] if len(samples) else times, color=colours.soft, linewidth=0.5)
    grey: Anchors = ((0.98, 0.0, 0.0), (0.25, 0.0, 0.0))
    spectrum.imshow(
        mel.numpy(), origin="lower", aspect="auto", extent=(start, start + mel.shape[1] / FRAMES, 0, len(mel)),
        cmap=colormap(grey if theme == "light" else grey[::-1], colours.paper),
    )  # fmt: skip
    for axes, name in ((wave, "wave"), (spectrum, "mel bands")):
        axes.annotate(name, (0, 0.5), (-5, 0), "axes fraction", "offset points", ha="right", va="center",
                      fontsize=SMALL, color=colours.soft, fontfamily=fonts())  # fmt: skip
    step = float(frames[1] - frames[0]) / FRAMES if len(frames) > 1 else seconds
    norm, ticks, beyond = scale_of(weights, large=True)
    if weights.numel():
        attending.imshow(
            weights.numpy(), origin="upper", aspect="auto", cmap=colormap(colours.weights, colours.paper), norm=norm,
            extent=(start, start + step * len(frames), len(words) - 0.5, -0.5), interpolation="nearest",
        )  # fmt: skip
        texts = [shorten(one) for one in ticks[:-1]] + [("≥ " if beyond else "") + shorten(ticks[-1])]
        made.legend(norm, colours.weights, "attention weight (color: its square root)", ticks, texts, under=0.34)
    if names:
        name_rows(attending, names)
    for axes in (wave, spectrum):
        axes.set_xlim(start, end)
    attending.set(xlim=(start, end))
    _mark_seconds(attending, colours.soft)
    if not words:
        attending.text(0.5, 0.5, "nothing said", transform=attending.transAxes, ha="center", va="center",
                       fontsize=SMALL, color=colours.soft, fontfamily=fonts())  # fmt: skip
    return finished(made.figure, path)


def _mark_seconds(axes: "Axes", ink: str) -> None:
    """Seconds below the lowest panel."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} s"))
    axes.tick_params(axis="x", labelsize=SMALL, labelcolor=ink, length=3, pad=2)


def strip(words: Sequence[str], weights: Tensor, columns: int = 80) -> Text:
    """The strip for the terminal: one small grid per word, light where it looked; all words on one scale."""
    words = [harmless(word) for word in words]
    weights = _finite(weights)
    side, top = square_side(weights.shape[-1]), _top(weights)
    across_cells = 2 * side
    across = max(1, columns // (across_cells + 2))
    text = Text()
    for first in range(0, len(words), across):
        group = range(first, min(first + across, len(words)))
        text.append("  ".join(words[n][:across_cells].ljust(across_cells) for n in group).rstrip() + "\n")
        for row in range(side):
            for n in group:
                for weight in (weights[n].reshape(side, side)[row] / top).sqrt().tolist():
                    text.append(*_cell(weight, 2))
                text.append("  ")
            text.append("\n")
    return text


def timeline(words: Sequence[str], weights: Tensor, columns: int = 80) -> Text:
    """Where each word looked along a sound, for the terminal: a line per word, all on one scale."""
    words = [harmless(word) for word in words]
    name = max((len(word) for word in words), default=0)
    weights = _finite(weights)
    top = _top(weights)
    room = max(10, min(columns - name - 2, weights.shape[-1]))
    text = Text()
    for word, row in zip(words, weights, strict=True):
        text.append(word.ljust(name + 1))
        cells = [
            row[n * len(row) // room : max(n * len(row) // room + 1, (n + 1) * len(row) // room)] for n in range(room)
        ]
        for cell in cells:
            weight = (float(cell.max()) / top) ** 0.5 if cell.numel() else 0.0
            text.append(*_cell(weight, 1))
        text.append("\n")
    return text


def _cell(weight: float, wide: int) -> tuple[str, str]:
    """A cell in the terminal and its style: in colors a plain gray one, without them a glyph as dense."""
    shade = f"color({232 + min(SHADES - 1, int(weight * SHADES))})"
    return GLYPHS[min(len(GLYPHS) - 1, int(weight * len(GLYPHS)))] * wide, f"{shade} on {shade}"


def square_side(cells: int) -> int:
    """Height and width of a square grid of so many cells.

    Raises:
        ShapeError: it is none.
    """
    side = isqrt(cells)
    if side * side != cells:
        raise ShapeError(f"{cells} cells are no square grid")
    return side
