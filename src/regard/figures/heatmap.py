"""Attention as heatmaps: queries down, keys across, every panel of a figure on one scale that begins at 0."""

import itertools
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regard.errors import ShapeError
from regard.figures.files import finished
from regard.figures.sheet import (
    LETTERS,
    NAMED,
    Sheet,
    column_names,
    corner_room,
    name_columns,
    name_corner,
    name_rows,
    row_names,
    sheet,
)
from regard.figures.style import Theme, colormap, colour, cut, fonts, ink_on, round_up, shorten, theme_of, visible, wide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

PANELS = 64  # of a figure, at most
SIDES = ("output ↓", "source →")
NUMBERS_UP_TO = 144  # cells: beyond that, numbers inside them would be too small to read
NOTHING = "nothing to look at"


def draw_heatmaps(
    weights: Tensor, rows: Sequence[str], columns: Sequence[str], *, names: Sequence[str] = (), title: str = "",
    note: str = "", sides: tuple[str, str] = ("query ↓", "key →"), cell: tuple[int, int] = (1, 1), across: int = 0,
    remark: str = "", theme: str = "light", path: str | Path | None = None,
) -> "Figure":  # fmt: skip
    """A figure of one heatmap per panel, all on one linear scale from 0 to a round number; pooled maps on its root.

    Args:
        weights: `[panels, rows, columns]`.
        rows, columns: names, from top to bottom and from left to right; empty for positions.
        names: of the panels.
        title: what is drawn.
        note: what else is to be said of it.
        sides: what rows and columns are.
        cell: how many queries and keys a point stands for; (1, 1) where every weight is a point of its own.
        across: panels side by side; chosen by default.
        remark: beside the legend.
        theme: "light" or "dark".
        path: the file; its ending (.png, .svg, .pdf) gives the format.

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
        ChoiceError: there is no such theme.
    """
    colours = theme_of(theme)
    if not weights.numel():
        return finished(_nothing(colours, title), path)
    weights = weights.detach().float().cpu()
    count, high, wide_ = weights.shape
    large, single = cell != (1, 1), count == 1
    pitches = _pitches(high, wide_, rows, columns, single, large)
    down_names, across_names = (
        row_names(rows, high, pitches[0], cell[0]),
        column_names(columns, wide_, pitches[1], cell[1]),
    )
    corner = corner_room(*sides)
    left, above = max(corner[0], down_names.room), max(corner[1], across_names.room)
    size = (high * pitches[0], wide_ * pitches[1])
    across = min(count, across or _across(count, size[1]))
    made = sheet(
        colours, [size[1]] * across, [size[0]] * ceil(count / across), title=title, note=note, left=left, above=above,
        right=max(0.05, across_names.beyond), head=0.24 if names else 0.0, gap=0.2,
    )  # fmt: skip
    norm, ticks, beyond = scale_of(weights, large)
    panels = [axes for row in made.axes for axes in row]
    for number, axes in enumerate(panels):
        if number >= count:
            axes.set_visible(False)
            continue
        axes.imshow(
            weights[number].numpy(), origin="upper", cmap=colormap(colours.weights, colours.paper), norm=norm,
            aspect="auto", interpolation="nearest",
        )  # fmt: skip
        if number % across == 0:
            name_rows(axes, down_names)
        if number < across:
            name_columns(axes, across_names)
        if names:
            lift = above * 72 + 2 if number < across else 5.0
            axes.annotate(visible(names[number]), (0, 1), (0, lift), "axes fraction", "offset points", fontsize=8.5,
                          color=colours.ink, fontfamily=fonts())  # fmt: skip
    name_corner(panels[0], *sides, colours)
    if single and high * wide_ <= NUMBERS_UP_TO and not large and pitches[1] >= 0.34:
        _write_numbers(panels[0], weights[0], norm, colours)
    _legend(made, norm, [shorten(one) for one in ticks[:-1]] + [("≥ " if beyond else "") + shorten(ticks[-1])], ticks,
            large, cell, remark)  # fmt: skip
    return finished(made.figure, path)


def scale_of(weights: Tensor, large: bool) -> "tuple[Normalize, list[float], bool]":
    """The scale of all panels of a figure, from 0 to 1 or, where all weights are small, to a round number.

    Weights of long sequences differ by orders of magnitude: the colors of a large map follow the root of the weight,
    and end where all but one in two hundred of its points that are not 0 do.

    Returns:
        the scale, the numbers that are marked on it, and whether there are weights beyond its end.
    """
    from matplotlib.colors import Normalize, PowerNorm

    flat = weights.nan_to_num().flatten()
    largest = float(flat.max()) if len(flat) else 0.0
    if not large:
        top = 1.0 if largest <= 0 or largest > 0.2 else round_up(largest)
        return Normalize(0, top), [0.0, top / 2, top], False
    some = flat[flat > 0]
    most = float(some.kthvalue(max(1, round(0.995 * len(some)))).values) if len(some) else 0.0
    top = round_up(most) if most > 0 else 1.0
    return PowerNorm(0.5, 0, top), [0.0, top / 10, top / 2, top], largest > top * (1 + 1e-6)


def _pitches(
    high: int, wide_: int, rows: Sequence[str], columns: Sequence[str], single: bool, large: bool
) -> tuple[float, float]:
    """Height of a row and width of a column, in inches."""
    if large or max(high, wide_) > 40:
        side = 5.6 if single else 2.7
        named = bool(rows or columns) and single and not large and max(high, wide_) <= 100
        pitch = max(side / max(high, wide_), NAMED if named else 0)
        return max(pitch, 0.5 / high), max(pitch, 0.5 / wide_)
    if not single:
        pitch = min(0.24, 2.9 / max(high, wide_))
        return max(pitch, 0.6 / high), max(pitch, 1.0 / wide_)
    pitch = 0.42 if max(high, wide_) <= 14 else 0.26
    if wide_ > 14 or not columns:
        return pitch, pitch
    widths = [wide(cut(one, LETTERS), 9.0) for one in columns]
    pairs = [(a + b) / 2 + 0.08 for a, b in itertools.pairwise(widths)] or [widths[0]]
    return pitch, min(1.0, max(0.5, *pairs))


def _across(count: int, width: float) -> int:
    """How many panels stand side by side: as many as a page is wide, in even rows."""
    most = max(1, min(8, int(12.5 // (width + 0.2))))
    return ceil(count / ceil(count / min(most, count)))


def _write_numbers(axes: "Axes", weights: Tensor, norm: "Normalize", theme: Theme) -> None:
    for i, row in enumerate(weights.tolist()):
        for j, weight in enumerate(row):
            if weight >= 0.005:
                ink = ink_on(colour(float(norm(weight)), theme.weights))
                axes.text(
                    j, i, f"{weight:.2f}".removeprefix("0"), ha="center", va="center", fontsize=8, color=ink,
                    fontfamily=fonts(),
                )  # fmt: skip


def _legend(
    made: Sheet,
    norm: "Normalize",
    texts: list[str],
    ticks: list[float],
    large: bool,
    cell: tuple[int, int],
    remark: str,
) -> None:
    pooled = f"each point: the largest weight of {cell[0]:,} × {cell[1]:,} (queries × keys)" if large else ""
    said = "; ".join(one for one in (remark, pooled) if one)
    label = "attention weight" + (" (color: its square root)" if large else "")
    made.legend(norm, made.theme.weights, label, ticks, texts, said)


def _nothing(theme: Theme, title: str) -> "Figure":
    made = sheet(theme, [3.0], [0.8], title=title, foot=0.0)
    axes = made.axes[0][0]
    axes.text(0.5, 0.5, NOTHING, ha="center", va="center", color=theme.soft, fontsize=9, fontfamily=fonts())
    axes.spines[:].set_visible(False)
    return made.figure


def heatmap(
    weights: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str = "",
    sides: tuple[str, str] = ("query ↓", "key →"), *, note: str = "", theme: str = "light",
    path: str | Path | None = None,
) -> "Figure":  # fmt: skip
    """A figure of weights between named queries (down) and named keys (across), and what each of the sides is."""
    full = bool(rows) and bool(columns)
    if full and (len(weights) != len(rows) or any(len(row) != len(columns) for row in weights)):
        sizes = f"{len(weights)} × {len(weights[0]) if len(weights) else 0}"
        raise ShapeError(f"heatmap: {len(rows)} rows and {len(columns)} columns are named, and the weights are {sizes}")
    matrix = torch.tensor(weights)[None] if full else torch.zeros(0, 0, 0)
    return draw_heatmaps(matrix, rows, columns, title=title, note=note, sides=sides, theme=theme, path=path)
