"""Figures of findings: words in a table with a colour for each, and the signed parts of a sum."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.figures.heatmap import COLOURS, fonts, heatmap, name_axes, save_figure, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIGNED = "RdBu"  # red below 0, blue above


def save_table(
    values: Sequence[Sequence[float]], words: Sequence[Sequence[str]], rows: Sequence[str], columns: Sequence[str],
    path: str | Path, title: str = "", label: str = "probability",
) -> None:  # fmt: skip
    """Write a table of words; the ending of `path` says how (.png, .svg, .pdf).

    Args:
        values: each cell's number between 0 (white) and 1 (dark blue).
        words: each cell's word.
        rows: names, drawn from the bottom to the top, as layers stand on each other.
        columns: names, from left to right.
        path: where to.
        title: above the picture.
        label: of the colours.

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
    """
    from matplotlib.figure import Figure

    if not rows or not columns:
        save_figure(heatmap([], [], []), path)
        return
    widest = min(12, max(len(visible(word)) for row in words for word in row))
    cell = max(0.5, 0.1 * widest + 0.12)
    figure = Figure(figsize=(cell * len(columns) + 2.4, 0.36 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap=COLOURS, vmin=0, vmax=1, aspect="auto", origin="lower")
    name_axes(axes, rows, columns)
    for i, row in enumerate(words):
        for j, word in enumerate(row):
            shown = visible(word)
            shown = shown if len(shown) <= 12 else shown[:11] + "…"
            axes.text(
                j, i, shown, ha="center", va="center", fontsize=8, fontfamily=fonts(),
                color="white" if values[i][j] > 0.55 else "#333",
            )  # fmt: skip
    axes.set_title(title, fontsize=9, color="#555")
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 0.5, 1])
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    save_figure(figure, path)


def save_parts(
    parts: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], rest: Mapping[str, float],
    path: str | Path, title: str = "", label: str = "part of the logit",
) -> None:  # fmt: skip
    """Write signed parts of a sum: those between rows and columns by colour, the rest as bars on the right.

    Args:
        parts: one row per name in `rows`, one column per name in `columns`.
        rows, columns: names.
        rest: further parts; there may be none.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
        title: above the picture.
        label: what the numbers are.

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
    """
    from matplotlib.figure import Figure

    wide, lines = max(1, len(columns)), max(len(rows), len(rest), 3)
    figure = Figure(figsize=(0.6 * wide + 2.2 + 4.2 * bool(rest), 0.3 * lines + 1.7), layout="constrained")
    grid = figure.add_gridspec(1, 1 + bool(rest), width_ratios=[0.6 * wide + 2.2, 4.2][: 1 + bool(rest)])
    left = figure.add_subplot(grid[0])
    if rows and columns:
        most = max(1e-9, *(abs(value) for row in parts for value in row))
        image = left.imshow(parts, cmap=SIGNED, vmin=-most, vmax=most, aspect="auto")
        name_axes(left, rows, columns)
        bar = figure.colorbar(image, ax=left, fraction=0.04, pad=0.02)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    else:
        left.axis("off")
    if rest:
        _draw_bars(figure.add_subplot(grid[1]), rest, label)
    figure.suptitle(visible(title), fontsize=9, color="#555", fontfamily=fonts())
    save_figure(figure, path)


def _draw_bars(axes: "Axes", numbers: Mapping[str, float], label: str) -> None:
    names = list(numbers)
    axes.barh(range(len(names)), [numbers[name] for name in names], color=[_ink(numbers[name]) for name in names])
    axes.set_yticks(range(len(names)), [visible(name) for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="#333", linewidth=0.8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(label, fontsize=8)


def _ink(value: float) -> str:
    return "#b2182b" if value < 0 else "#2166ac"
