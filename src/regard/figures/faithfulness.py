"""Figures of faithfulness: deletion and insertion curves, and gains beside those of random orders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.figures.heatmap import fonts, save_figure, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BELIEVED, NOT = "#2166ac", "#999999"

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
    names = list(curves)
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
    right.axvspan(*interval, color="#eeeeee")
    right.axvline(0, color="#333", linewidth=0.8)
    values = [gains[name] for name in names]
    right.barh(range(len(names)), [gain for gain, _ in values], color=[BELIEVED if ok else NOT for _, ok in values])
    right.set_yticks(range(len(names)), [visible(name) for name in names], fontsize=8)
    for number, label in enumerate(right.get_yticklabels()):
        label.set_color(colours(number % 10))
        label.set_fontfamily(fonts())
    right.invert_yaxis()
    right.set_title("gain; shaded: 95 % of random orders", fontsize=9, loc="left")
    right.spines[["top", "right", "left"]].set_visible(False)
    right.tick_params(labelsize=8)
    figure.suptitle(visible(title), fontsize=9, color="#555", fontfamily=fonts())
    if path is not None:
        save_figure(figure, path)
    return figure
