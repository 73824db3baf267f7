"""Curves of a training run, and attention maps over its course, as SVG to put into a page."""

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

from regard.figures.style import THEMES, colormap, visible

NAMED = 80  # tokens of a side
POINTS = 500  # of a curve
Points = Sequence[tuple[float, float]]
THEME = THEMES["light"]  # the page lays figures on a light ground
INK, GREY, COLOURS = THEME.ink, THEME.soft, THEME.series


def curves(panels: Sequence[tuple[str, Sequence[tuple[str, Points]]]], best: int | None = None) -> "Figure":
    """Small panels side by side, each with its name and at most six curves over updates.

    Of more than 500 points of a curve, evenly spaced ones are drawn, and the last one.

    Args:
        panels: (name, [(curve's name, [(update, value), …]), …]).
        best: the update of the model that was kept, marked by a line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.5 * columns, 2.4 * rows), layout="constrained")
    for place, (name, lines) in enumerate(panels):
        axes: Axes = figure.add_subplot(rows, columns, place + 1)
        for (label, every), colour in zip(lines, COLOURS, strict=False):
            points = [*every[:: ceil(len(every) / POINTS)], every[-1]] if len(every) > POINTS else every
            axes.plot([x for x, _ in points], [y for _, y in points], color=colour, linewidth=1.4, marker="o",
                      markersize=2.4, label=visible(label))  # fmt: skip
        if len(lines) > 1:
            axes.legend(fontsize=7, frameon=False, labelcolor="linecolor")
        if best is not None:
            axes.axvline(best, color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set_title(visible(name), loc="left", fontsize=9, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7, colors=GREY)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.margins(x=0.04)
    return figure


def course(
    steps: Sequence[int], maps: Sequence[Sequence[Sequence[float]]], rows: Sequence[str], columns: Sequence[str]
) -> "Figure":
    """One attention map after each of some updates, side by side, on one scale from 0 (white) to 1.

    Of more than 80 tokens, evenly spaced ones are named.

    Args:
        steps: the updates.
        maps: one matrix an update, `[output tokens, source tokens]`.
        rows, columns: the tokens.
    """
    from matplotlib.figure import Figure

    size = 0.13
    wide, high = (max(1.1, size * min(NAMED, len(tokens))) for tokens in (columns, rows))
    across, down = (range(0, len(tokens), max(1, ceil(len(tokens) / NAMED))) for tokens in (columns, rows))
    figure = Figure(figsize=((wide + 0.15) * len(steps) + 1.0, high + 1.1), layout="constrained")
    for place, (step, weights) in enumerate(zip(steps, maps, strict=True)):
        axes = figure.add_subplot(1, len(steps), place + 1)
        axes.imshow(
            weights,
            origin="upper",
            cmap=colormap(THEME.weights, THEME.paper),
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_title(f"update {step:,}", fontsize=7, color=INK)
        axes.set_xticks(across, [visible(columns[n]) for n in across], fontsize=5, rotation=90)
        axes.set_yticks(down, [visible(rows[n]) for n in down] if not place else [], fontsize=5)
        axes.tick_params(length=0, colors=GREY)
        axes.spines[:].set_color(THEME.line)
    return figure
