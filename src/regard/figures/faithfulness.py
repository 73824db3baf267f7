"""Figures of faithfulness: deletion and insertion curves, and gains beside those of random orders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.figures.files import save_figure
from regard.figures.style import THEMES, colormap, fonts, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BELIEVED, NOT = "#2166ac", "#999999"
THEME = THEMES["light"]

Lines = tuple[Sequence[float], Sequence[float], Sequence[float]]


def draw_faithfulness(
    curves: Mapping[str, Lines], gains: Mapping[str, tuple[float, bool]], interval: tuple[float, float],
    title: str = "", path: str | Path | None = None,
) -> "Figure":  # fmt: skip
    """A figure of three panels: deletion curves, insertion curves, gains.

    Args:
        curves: {explanation: (shares, deletion, insertion)}.
        gains: {explanation: (gain, whether it beats random orders)}.
        interval: of the gains of random orders, shaded.
        title: above the figure.
        path: the file; its ending (.png, .svg, .pdf) gives the format.

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, max(2.6, 0.28 * len(gains) + 1.2)), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    colours = colormaps["tab10"]
    for number, (shares, deletion, insertion) in enumerate(curves.values()):
        style = {"color": colours(number % 10), "linewidth": 1.3, "linestyle": "-" if number < 10 else "--"}
        left.plot(shares, deletion, **style)
        middle.plot(shares, insertion, **style)
    for axes, name in ((left, "deletion: words taken out"), (middle, "insertion: words put in")):
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xlabel("share of the words, in each explanation's order", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    left.set_ylabel("probability", fontsize=8)
    _draw_gains(right, gains, interval)
    for number, label in enumerate(right.get_yticklabels()):
        label.set_color(colours(number % 10))
    figure.suptitle(visible(title), fontsize=9, color="#555", fontfamily=fonts())
    if path is not None:
        save_figure(figure, path)
    return figure


def draw_reasons(
    shares: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str],
    gains: Mapping[str, tuple[float, bool]], interval: tuple[float, float], path: str | Path | None = None,
) -> "Figure":  # fmt: skip
    """A figure of what each word of an output came from, and beside it the gains of all explanations.

    Args:
        shares: `[rows, columns]`.
        rows: words of the output.
        columns: words of the input.
        gains, interval: as for `draw_faithfulness`; there may be none.
        path: the file; its ending (.png, .svg, .pdf) gives the format.

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
    """
    from matplotlib.figure import Figure

    longest = max((len(visible(column)) for column in columns), default=1)
    wide = max(2.0, max(0.42, 0.1 * min(12, longest)) * len(columns) + 1.2)
    high = max(2.4, 0.34 * len(rows) + 1.4, 0.28 * len(gains) + 1.2)
    figure = Figure(figsize=(wide + 4.6 * bool(gains), high), layout="constrained")
    panels = figure.subplots(1, 1 + bool(gains), squeeze=False, width_ratios=[wide, 4.6][: 1 + bool(gains)])[0]
    if rows and columns:
        panels[0].imshow(shares, cmap=colormap(THEME.weights, THEME.paper), vmin=0, vmax=1, aspect="auto")
        _name_axes(panels[0], rows, columns)
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                if share >= 0.1:
                    colour = "white" if share > 0.55 else "#333"
                    panels[0].text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    else:
        panels[0].axis("off")
    panels[0].set_title("contributions: percent of what the input gave", fontsize=9, loc="left")
    if gains:
        _draw_gains(panels[1], gains, interval)
    if path is not None:
        save_figure(figure, path)
    return figure


def _draw_gains(axes: "Axes", gains: Mapping[str, tuple[float, bool]], interval: tuple[float, float]) -> None:
    """Bars, blue where an explanation beats random orders, whose interval is shaded."""
    axes.axvspan(*interval, color="#eeeeee")
    axes.axvline(0, color="#333", linewidth=0.8)
    colours = [BELIEVED if believed else NOT for _, believed in gains.values()]
    axes.barh(range(len(gains)), [gain for gain, _ in gains.values()], color=colours)
    axes.set_yticks(range(len(gains)), [visible(name) for name in gains], fontsize=8, fontfamily=fonts())
    axes.invert_yaxis()
    axes.set_title("gain; shaded: 95 % of random orders", fontsize=9, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _name_axes(axes: "Axes", rows: Sequence[str], columns: Sequence[str]) -> None:
    """Name rows and columns, the columns above the cells."""
    shown = [visible(name) for name in columns]
    turned = max(map(len, shown)) > 9
    side = "left" if turned else "center"
    axes.set_xticks(range(len(columns)), shown, rotation=42 * turned, ha=side, rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [visible(name) for name in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelfontfamily=fonts(), labelsize=10)
