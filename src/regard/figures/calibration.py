"""Reliability diagrams: confidence against the share that is right."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.figures.files import finished
from regard.figures.style import fonts, theme_of, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_calibration(
    confidence: Sequence[float], right: Sequence[float], count: Sequence[int], error: float, title: str = "",
    path: str | Path | None = None, theme: str = "light", share: str = "share right", counted: str = "predictions",
) -> "Figure":  # fmt: skip
    """Bins as points, the diagonal as what calibrated confidences would give, and below how many each bin holds.

    Args:
        confidence, right, count: mean confidence, share right and number of predictions of each bin.
        error: expected calibration error.
        title: above the figure.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
        theme: "light" or "dark".
        share, counted: what the share of right predictions and the predictions are called.

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    colours = theme_of(theme)
    figure = Figure(figsize=(4.6, 5.2), layout="constrained", facecolor=colours.paper)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 1], [0, 1], color=colours.soft, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
    upper.plot(confidence, right, color=colours.series[0], linewidth=1.6, marker="o", markersize=4)
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(loc="upper left", frameon=False, labelcolor=colours.soft, prop={"family": fonts(), "size": 8})
    upper.set_ylabel(visible(share), color=colours.ink, fontsize=9, fontfamily=fonts())
    lower.bar(confidence, count, width=0.06, color=colours.series[0], alpha=0.6)
    lower.set_ylabel(f"number of\n{visible(counted)}", color=colours.ink, fontsize=9, fontfamily=fonts())
    lower.set_xlabel("confidence: probability given by the model", color=colours.ink, fontsize=9, fontfamily=fonts())
    for axes in (upper, lower):
        axes.set_facecolor(colours.paper)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(colours.line)
        axes.tick_params(labelsize=8, colors=colours.soft, labelfontfamily=fonts())
    upper.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    lower.yaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
    named = f"{visible(title)}\n" if title else ""
    said = visible(counted)
    upper.set_title(
        f"{named}expected calibration error {100 * error:.1f} %, {sum(count):,} {said}", loc="left", fontsize=9,
        color=colours.ink, fontfamily=fonts(),
    )  # fmt: skip
    return finished(figure, path)
