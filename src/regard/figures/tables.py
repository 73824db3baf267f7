"""Tables of findings: signed numbers, words with a color each, and the parts of a sum."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regard.figures.files import finished
from regard.figures.heatmap import draw_heatmaps
from regard.figures.sheet import (
    NAMED,
    AxisNames,
    Sheet,
    add_axes,
    column_names,
    corner_room,
    dress,
    name_columns,
    name_corner,
    name_rows,
    row_names,
    sheet,
)
from regard.figures.style import Theme, colormap, colour, cut, fonts, ink_on, round_up, theme_of, visible, wide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

PITCH = 0.27  # of a row
WORD = 12  # letters of a word in a cell


def draw_tables(
    tables: Mapping[str, Tensor], rows: Sequence[str], columns: Sequence[str], sides: tuple[str, str], title: str = "",
    path: str | Path | None = None, *, note: str = "", label: str = "", theme: str = "light",
) -> "Figure":  # fmt: skip
    """A figure of tables `[rows, columns]`, one panel each, on one scale that is symmetric around 0: blue above.

    Args:
        tables: {name: table}; cells that are NaN stay empty.
        rows, columns: their names.
        sides: what rows and columns are.
        title: above the figure.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
        note: under the title.
        label: what the numbers are.
        theme: "light" or "dark".

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
        ChoiceError: there is no such theme.
    """
    colours = theme_of(theme)
    pitch = PITCH if len(rows) <= 40 else max(NAMED, 5.0 / len(rows))
    step = max(0.34 if len(columns) <= 24 else max(NAMED, 6.0 / len(columns)), 1.4 / max(1, len(columns)))
    down_names, across_names = row_names(rows, len(rows), pitch), column_names(columns, len(columns), step)
    corner, head = corner_room(*sides), 0.24 if any(tables) else 0.0
    across = max(1, min(4, len(tables), int(12.5 // (step * len(columns) + 0.2))))
    made = sheet(
        colours, [step * len(columns)] * across, [pitch * len(rows)] * ceil(len(tables) / across), title=title,
        note=note, left=max(corner[0], down_names.room), above=max(corner[1], across_names.room),
        right=max(0.05, across_names.beyond), head=head,
    )  # fmt: skip
    norm, ticks = signed_scale(max([0.0, *(_most(one) for one in tables.values())]))
    panels = [axes for row in made.axes for axes in row]
    for axes in panels[len(tables) :]:
        axes.set_visible(False)
    for number, ((name, table), axes) in enumerate(zip(tables.items(), panels, strict=False)):
        _fill(axes, table, norm, colours)
        if number % across == 0:
            name_rows(axes, down_names)
        if number < across:
            name_columns(axes, across_names)
        lift = max(corner[1], across_names.room) * 72 + 2 if number < across else 5.0
        axes.annotate(visible(name), (0, 1), (0, lift), "axes fraction", "offset points", fontsize=8.5,
                      color=colours.ink, fontfamily=fonts())  # fmt: skip
    name_corner(panels[0], *sides, colours)
    made.legend(norm, colours.signed, label, ticks, [f"{one:+g}" if one else "0" for one in ticks])
    return finished(made.figure, path)


def signed_scale(largest: float) -> "tuple[Normalize, list[float]]":
    """The scale of signed numbers, symmetric around 0, and the numbers that are marked on it."""
    from matplotlib.colors import Normalize

    top = round_up(largest) if largest > 0 else 1.0
    return Normalize(-top, top), [-top, 0.0, top]


def _most(table: Tensor) -> float:
    """The largest magnitude in a table, of those that are finite."""
    return float(table.nan_to_num(0.0, 0.0, 0.0).abs().max()) if table.numel() else 0.0


def _fill(axes: "Axes", table: Tensor, norm: "Normalize", theme: Theme) -> None:
    axes.imshow(
        table.detach().float().cpu().tolist(), origin="upper", cmap=colormap(theme.signed, theme.line), norm=norm,
        aspect="auto", interpolation="nearest",
    )  # fmt: skip


def draw_words(
    values: Sequence[Sequence[float]], words: Sequence[Sequence[str]], rows: Sequence[str], columns: Sequence[str],
    path: str | Path | None = None, title: str = "", label: str = "probability", *, note: str = "",
    sides: tuple[str, str] = ("layer ↑", "position →"), theme: str = "light",
) -> "Figure":  # fmt: skip
    """A figure of a table of words.

    Args:
        values: each cell's number between 0 and 1, its color.
        words: each cell's word.
        rows: names, drawn from the bottom to the top, as layers stand on each other.
        columns: names, from left to right.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
        title: above the figure.
        label: what the numbers are.
        note: under the title.
        sides: what rows and columns are.
        theme: "light" or "dark".

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
        ChoiceError: there is no such theme.
    """
    colours = theme_of(theme)
    if not rows or not columns:
        return draw_heatmaps(torch.zeros(0, 0, 0), [], [], title=title, theme=theme, path=path)
    shown = [[cut(word, WORD) for word in row] for row in words]
    step = max(0.5, *(wide(word, 8.0) + 0.14 for row in shown for word in row))
    down_names, across_names = row_names(rows[::-1], len(rows), PITCH), column_names(columns, len(columns), step)
    corner = corner_room(*sides)
    made = sheet(
        colours, [step * len(columns)], [PITCH * len(rows)], title=title, note=note,
        left=max(corner[0], down_names.room), above=max(corner[1], across_names.room),
        right=max(0.05, across_names.beyond),
    )  # fmt: skip
    from matplotlib.colors import Normalize

    axes, norm = made.axes[0][0], Normalize(0, 1)
    axes.imshow(
        values[::-1],
        origin="upper",
        cmap=colormap(colours.weights, colours.paper),
        norm=norm,
        aspect="auto",
        interpolation="nearest",
    )
    name_rows(axes, down_names)
    name_columns(axes, across_names)
    name_corner(axes, *sides, colours)
    for i, row in enumerate(shown[::-1]):
        for j, word in enumerate(row):
            ink = ink_on(colour(values[::-1][i][j], colours.weights))
            axes.text(j, i, visible(word), ha="center", va="center", fontsize=8, fontfamily=fonts(), color=ink)
    made.legend(norm, colours.weights, label, [0.0, 0.5, 1.0], ["0", ".5", "1"])
    return finished(made.figure, path)


def draw_parts(
    parts: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], rest: Mapping[str, float],
    path: str | Path | None = None, title: str = "", label: str = "part of the logit", *, note: str = "",
    sides: tuple[str, str] = ("head ↓", "source →"), theme: str = "light",
) -> "Figure":  # fmt: skip
    """A figure of the signed parts of a sum: those between rows and columns by color, the rest as bars on the right.

    Args:
        parts: one row per name in `rows`, one column per name in `columns`.
        rows, columns: names.
        rest: further parts; there may be none.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
        title: above the figure.
        label: what the numbers are.
        note: under the title.
        sides: what rows and columns are.
        theme: "light" or "dark".

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
        ChoiceError: there is no such theme.
    """
    colours = theme_of(theme)
    full = bool(rows) and bool(columns)
    high, across = max(len(rows), len(rest), 3), max(1, len(columns))
    step = max(0.34, min(0.6, 8.0 / across))
    down_names = row_names(rows, len(rows), PITCH) if full else AxisNames([], [])
    across_names = column_names(columns, len(columns), step) if full else AxisNames([], [])
    corner, beside = corner_room(*sides), max([0.0, *(wide(name, 8.5) for name in rest)]) + 0.5
    bars = beside + 2.6 if rest else 0.0
    made = sheet(
        colours, [step * across if full else 0.01], [PITCH * high], title=title, note=note,
        left=max(corner[0], down_names.room) if full else 0.0, above=max(corner[1], across_names.room),
        right=max(0.05, across_names.beyond) + bars,
    )  # fmt: skip
    axes = made.axes[0][0]
    if full:
        norm, ticks = signed_scale(max(abs(value) for row in parts for value in row))
        _fill(axes, torch.tensor(parts, dtype=torch.float32), norm, colours)
        box = axes.get_position()
        share = len(rows) / high
        axes.set_position((box.x0, box.y1 - box.height * share, box.width, box.height * share))
        name_rows(axes, down_names)
        name_columns(axes, across_names)
        name_corner(axes, *sides, colours)
        made.legend(norm, colours.signed, label, ticks, [f"{one:+g}" if one else "0" for one in ticks])
    else:
        axes.set_visible(False)
    if rest:
        _draw_bars(made, rest, label, made.size[0] - 0.16 - 2.6, high)
    return finished(made.figure, path)


def _draw_bars(made: Sheet, numbers: Mapping[str, float], label: str, left: float, high: int) -> None:
    """The other parts of a sum, beside its table: a bar each, with its number."""
    theme, names = made.theme, list(numbers)
    tall = PITCH * len(names)
    axes = add_axes(made.figure, left, made.below + PITCH * high - tall, 2.6, tall)
    dress(axes, theme)
    axes.spines[:].set_visible(False)
    below, above = colour(0.12, theme.signed), colour(0.88, theme.signed)
    values = [numbers[name] for name in names]
    axes.barh(range(len(names)), values, 0.62, color=[below if value < 0 else above for value in values])
    most = max(1e-9, *(abs(value) for value in values))
    for n, value in enumerate(values):
        end = (3, "left") if value >= 0 else (-3, "right")
        axes.annotate(f"{value:+.2f}", (value, n), (end[0], 0), "data", "offset points", ha=end[1], va="center",
                      fontsize=7.5, color=theme.soft, fontfamily=fonts())  # fmt: skip
    axes.axvline(0, color=theme.soft, linewidth=0.7)
    axes.set(xlim=(min(0.0, *values) - 0.4 * most, max(0.0, *values) + 0.4 * most), ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), [visible(name) for name in names])
    axes.tick_params(axis="y", labelsize=8.5, length=0)
    axes.annotate(visible(f"everything else: {label}"), (0, 1), (0, 5), "axes fraction", "offset points", fontsize=7.5,
                  color=theme.soft, fontfamily=fonts())  # fmt: skip
