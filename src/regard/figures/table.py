"""Tables of signed numbers as a figure: blue where they are positive, red where they are negative."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from regard.figures.heatmap import fonts, save_figure, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES_UP_TO = 64  # rows or columns with names


def draw_tables(
    tables: Mapping[str, Tensor], rows: Sequence[str], columns: Sequence[str], sides: tuple[str, str], title: str = "",
    path: str | Path | None = None,
) -> "Figure":  # fmt: skip
    """A figure of tables `[rows, columns]`, one panel each, on one scale that is symmetric around 0.

    Args:
        tables: {title: table}; cells that are NaN stay empty.
        rows, columns: their names.
        sides: what rows and columns are.
        title: above the figure.
        path: the file; its ending (.png, .svg, .pdf) gives the format.

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
    """
    from matplotlib.figure import Figure

    across = min(4, len(tables))
    down = ceil(len(tables) / across)
    cell = (max(2.4, 0.3 * min(NAMES_UP_TO, len(columns))), max(1.2, 0.3 * min(NAMES_UP_TO, len(rows))))
    longest = 0.09 * max(map(len, rows), default=1)
    figure = Figure(figsize=(across * (cell[0] + longest) + 1.4, down * (cell[1] + 0.8) + 0.4), layout="constrained")
    limit = max(1e-12, *(float(one.nan_to_num().abs().max()) for one in tables.values()))
    panels = figure.subplots(down, across, squeeze=False).flat
    shown = None
    for (name, table), axes in zip(tables.items(), panels, strict=False):
        shown = axes.imshow(table.tolist(), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        if len(rows) <= NAMES_UP_TO:
            axes.set_yticks(range(len(rows)), [visible(row) for row in rows], fontsize=7)
        if len(columns) <= NAMES_UP_TO:
            steep = 60 if max(map(len, columns)) > 2 else 0
            axes.set_xticks(range(len(columns)), [visible(one) for one in columns], fontsize=7, rotation=steep)
        axes.tick_params(length=0, labelfontfamily=fonts())
        axes.set_ylabel(sides[0], fontsize=8)
        axes.set_xlabel(sides[1], fontsize=8)
        axes.set_title(name, fontsize=8)
    for axes in panels:  # those that no table came to
        axes.axis("off")
    if shown is not None:
        figure.colorbar(shown, ax=figure.axes, fraction=0.04, pad=0.02).ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=9, color="#555")
    if path is not None:
        save_figure(figure, path)
    return figure
