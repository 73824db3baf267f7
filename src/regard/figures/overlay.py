"""Figures of where words looked: a strip of pictures, the spectrogram of a sound, and both in the terminal."""

from collections.abc import Sequence
from math import ceil, isqrt
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.text import Text
from torch import Tensor

from regard.errors import ShapeError, harmless
from regard.figures.heatmap import COLOURS, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 6  # panels side by side
DARK = 0.18  # brightness of a cell without weight
WORDS = 48  # of a strip at most
SIDE = 384  # points of a panel's picture
SHADES = 24  # of grey in the terminal
GLYPHS = " ░▒▓█"  # that show where there is no colour
RATE, FRAMES = 16_000, 100  # samples and frames of a second


def draw_strip(
    picture: Image.Image, words: Sequence[str], weights: Tensor, path: str | Path | None = None, smooth: bool = False,
    heading: str = "",
) -> "Figure":  # fmt: skip
    """The picture, then once more for each word, light where the word looked and dark where not.

    Args:
        picture: square, as the model saw it.
        words: of the text.
        weights: `[words, cells]`, row by row; each word is drawn to its own maximum, which stands beside it.
        path: where to; the ending (.png, .svg, .pdf) says how.
        smooth: blend the cells into each other, which the title says; exact cells otherwise.
        heading: what stands above.
    """
    from matplotlib.figure import Figure

    side = square_side(weights.shape[-1])
    shown = list(zip(words, weights, strict=True))[:WORDS]
    across = min(ACROSS, len(shown) + 1)
    down = ceil((len(shown) + 1) / across)
    figure = Figure(figsize=(1.7 * across, 1.95 * down + 0.35), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    points = np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255
    for axes in panels[len(shown) + 1 :]:
        axes.axis("off")
    for axes in panels[: len(shown) + 1]:
        _frame(axes)
    panels[0].imshow(points)
    panels[0].set_title("the picture", fontsize=9, color="#555")
    for axes, (word, row) in zip(panels[1:], shown, strict=False):
        most = float(row.max()) if row.numel() else 0.0
        axes.imshow(points * _light(row / max(most, 1e-9), side, smooth)[..., None])
        axes.set_title(f"{word}  {most:.2f}".replace("$", r"\$"), fontsize=9)
    kind = "smoothed" if smooth else "exact cells"
    more = f"; the first {WORDS} of {len(words)} words" if len(words) > WORDS else ""
    between = " " if across > 2 else "\n"  # a narrow figure has no room for one line
    attending = "the model" if heading else "the word"
    said = (
        f"light: attention of {attending}{between}({kind}; the number: its largest weight){more}"
        if words
        else "nothing said"
    )
    above = "\n".join([*wrap(heading, max(24, 20 * across)), said])
    figure.suptitle(above.replace("$", r"\$"), fontsize=8, color="#555")
    if path is not None:
        save_figure(figure, path)
    return figure


def draw_film(
    frames: Sequence[Image.Image], words: Sequence[str], weights: Tensor, path: str | Path | None = None,
    smooth: bool = False,
) -> "Figure":  # fmt: skip
    """The frames of a moving picture, then once more for each word, light where and when the word looked.

    Args:
        frames: square, as the model saw them.
        words: of the text.
        weights: `[words, frames · cells]`, frame by frame, row by row; each word is drawn to its own maximum.
        path: where to; the ending (.png, .svg, .pdf) says how.
        smooth: blend the cells of a frame into each other; exact cells otherwise.
    """
    from matplotlib.figure import Figure

    side = square_side(weights.shape[-1] // len(frames))
    down = 1 + min(WORDS, len(words))
    figure = Figure(figsize=(1.25 * len(frames) + 0.9, 1.3 * down + 0.4), layout="constrained")
    panels = figure.subplots(down, len(frames), squeeze=False)
    for number, frame in enumerate(frames):
        points = np.asarray(frame.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255
        panels[0][number].imshow(points)
        panels[0][number].set_title(f"frame {number + 1}", fontsize=8, color="#555")
        for row, cells in zip(panels[1:], weights, strict=False):
            own = cells.unflatten(0, (len(frames), side * side))[number] / cells.max().clamp(min=1e-9)
            row[number].imshow(points * _light(own, side, smooth)[..., None])
    for row, name in zip(panels, ["the picture", *words], strict=False):
        row[0].set_ylabel(name.replace("$", r"\$"), fontsize=9)
        for axes in row:
            _frame(axes)
    kind = "smoothed" if smooth else "exact cells"
    said = (
        f"light: where and when the word looked ({kind}, each to its own largest weight)" if words else "nothing said"
    )
    figure.suptitle(said, fontsize=8, color="#555")
    if path is not None:
        save_figure(figure, path)
    return figure


def _frame(axes: "Axes") -> None:
    """A thin line round a picture, which may be white, and nothing else."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set(color="#bbb", linewidth=0.5)


def _light(shares: Tensor, side: int, smooth: bool) -> np.ndarray:
    """How light each point is, from cells' shares of the largest weight."""
    light = DARK + (1 - DARK) * shares.reshape(side, side).numpy()
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(light.astype(np.float32)).resize((SIDE, SIDE), how)).clip(0, 1)


def draw_sound(
    samples: Tensor, mel: Tensor, words: Sequence[str], weights: Tensor, frames: Tensor,
    path: str | Path | None = None, start: float = 0.0,
) -> "Figure":  # fmt: skip
    """The wave, the spectrogram and where each word looked, over one line of time in seconds.

    Args:
        samples: at 16 kHz.
        mel: the log-mel spectrogram `[bands, frames]`.
        words: of the text.
        weights: `[words, S]` over the memory's moments; each word is drawn to its own maximum.
        frames: `[S]`, where the moments stand, in frames of 10 ms.
        path: where to; the ending (.png, .svg, .pdf) says how.
        start: seconds before the sound, where it is a piece of a longer one.
    """
    from matplotlib.figure import Figure

    seconds = len(samples) / RATE
    end = start + max(seconds, mel.shape[1] / FRAMES)
    height = 0.9 + 1.4 + max(1.0, 0.22 * len(words))
    figure = Figure(figsize=(min(16.0, max(6.0, 1.6 * seconds + 1.5)), height + 0.6), layout="constrained")
    wave, spectrum, word_attention = figure.subplots(
        3, 1, sharex=True, height_ratios=[0.9, 1.4, max(1.0, 0.22 * len(words))]
    )  # fmt: skip
    times = start + np.linspace(0, seconds, min(len(samples), 4000))
    positions = np.linspace(0, max(0, len(samples) - 1), len(times)).astype(int)
    wave.plot(times, samples.numpy()[positions] if len(samples) else times, color="#444", linewidth=0.5)
    wave.set_yticks([])
    wave.set_ylabel("wave", fontsize=8)
    spectrum.imshow(
        mel.numpy(),
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(start, start + mel.shape[1] / FRAMES, 0, len(mel)),
    )
    spectrum.set_ylabel("mel band", fontsize=8)
    step = float(frames[1] - frames[0]) / FRAMES if len(frames) > 1 else seconds
    width = (start, start + step * len(frames), len(words), 0)
    if weights.numel():
        most = weights.amax(-1, keepdim=True).clamp(min=1e-9)
        word_attention.imshow(
            (weights / most).numpy(), aspect="auto", cmap=COLOURS, vmin=0, vmax=1, extent=width, interpolation="nearest"
        )
    word_attention.set_yticks([n + 0.5 for n in range(len(words))], words, fontsize=8)
    said = "dark: where the word looked (each to its own largest weight)" if words else "nothing said"
    word_attention.set_xlabel(f"seconds; {said}", fontsize=8)
    word_attention.set_xlim(start, end)
    for axes in (wave, spectrum, word_attention):
        axes.tick_params(labelsize=8)
    if path is not None:
        save_figure(figure, path)
    return figure


def strip(words: Sequence[str], weights: Tensor, columns: int = 80) -> Text:
    """The strip for the terminal: one small grid per word, light where it looked."""
    words = [harmless(word) for word in words]
    side = square_side(weights.shape[-1])
    wide = 2 * side
    across = max(1, columns // (wide + 2))
    text = Text()
    for first in range(0, len(words), across):
        group = range(first, min(first + across, len(words)))
        text.append("  ".join(words[n][:wide].ljust(wide) for n in group).rstrip() + "\n")
        for row in range(side):
            for n in group:
                for weight in (weights[n].reshape(side, side)[row] / weights[n].max().clamp(min=1e-9)).tolist():
                    text.append(*_cell(weight, 2))
                text.append("  ")
            text.append("\n")
    return text


def timeline(words: Sequence[str], weights: Tensor, columns: int = 80) -> Text:
    """Where each word looked along a sound, for the terminal: a line per word, light where it looked."""
    words = [harmless(word) for word in words]
    name = max((len(word) for word in words), default=0)
    room = max(10, min(columns - name - 2, weights.shape[-1]))
    text = Text()
    for word, row in zip(words, weights, strict=True):
        text.append(word.ljust(name + 1))
        cells = [
            row[n * len(row) // room : max(n * len(row) // room + 1, (n + 1) * len(row) // room)] for n in range(room)
        ]
        most = float(row.max()) if row.numel() else 0.0
        for cell in cells:
            weight = float(cell.max()) / max(most, 1e-9) if cell.numel() else 0.0
            text.append(*_cell(weight, 1))
        text.append("\n")
    return text


def _cell(weight: float, wide: int) -> tuple[str, str]:
    """A cell in the terminal and its style: in colours a plain grey one, without them a glyph as dense."""
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
