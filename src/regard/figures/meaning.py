"""A word's way through the layers, drawn in a plane."""

from pathlib import Path
from typing import TYPE_CHECKING

from regard.figures.files import finished
from regard.figures.sheet import EDGE, sheet
from regard.figures.style import Theme, fonts, theme_of, visible, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from regard.analysis.meaning import Meaning

PLANE = (5.4, 4.2)  # inches
BESIDE = 3.3  # width of the list of texts
APART = 0.17  # inches between the ends' numbers


def draw_meaning(meaning: "Meaning", path: str | Path | None = None, theme: str = "light") -> "Figure":
    """A word's way through the layers in every text, in the plane in which all its vectors differ most.

    Args:
        meaning: what `regard meaning` computes.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
        theme: "light" or "dark".
    """
    colours = theme_of(theme)
    made = sheet(
        colours, [PLANE[0]], [PLANE[1]], title=f"“{meaning.word}” through the layers",
        note="from before the first block (ring) to after the last (number); small numbers: layers", left=0.2,
        right=BESIDE + 0.35, foot=0.25,
    )  # fmt: skip
    axes, inks = made.axes[0][0], colours.series
    axes.spines[["top", "right"]].set_visible(False)
    ends = []
    for n, points in enumerate(meaning.projection.tolist()):
        ink = inks[n % len(inks)]
        across, up = zip(*points, strict=True)
        axes.plot(across, up, "-", linewidth=1.4, color=ink, alpha=0.9)
        axes.plot(across[1:], up[1:], "o", markersize=3.4, color=ink)
        axes.plot(across[0], up[0], "o", markersize=6, markerfacecolor=colours.paper, markeredgecolor=ink)
        ends.append((across[-1], up[-1], ink))
    axes.margins(0.09)
    _number_layers(axes, meaning, colours)
    _number_ends(axes, ends)
    axes.set_xlabel(f"first direction: {meaning.explained[0]:.0%} of the variance", loc="left")
    axes.set_ylabel(f"second: {meaning.explained[1]:.0%}", loc="bottom")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(fontsize=7.5, color=colours.soft, fontfamily=fonts())
    x, y = made.left + PLANE[0] + 0.35, made.below + PLANE[1]
    for n, text in enumerate(meaning.texts):
        ink = inks[n % len(inks)]
        made.write(x, y, f"{n + 1}", 9.0, ink, va="top", weight="bold")
        near = ", ".join(word for word, _ in meaning.after[n][:4])
        for line in wrapped(text, 9.0, BESIDE - 0.25):
            made.write(x + 0.2, y, line, 9.0, colours.ink, va="top")
            y -= 0.17
        for line in wrapped(f"near: {near}", 8.0, BESIDE - 0.25):
            made.write(x + 0.2, y, line, 8.0, va="top")
            y -= 0.15
        y -= 0.12
        if y < EDGE + 0.3:  # no room for further texts
            break
    return finished(made.figure, path)


def _scale(axes: "Axes") -> tuple[float, float]:
    """Inches of one unit of either axis."""
    across, up = axes.get_xlim(), axes.get_ylim()
    return PLANE[0] / (across[1] - across[0]), PLANE[1] / (up[1] - up[0])


def _number_layers(axes: "Axes", meaning: "Meaning", theme: Theme) -> None:
    """The layers' numbers beside the points that stand clear of all numbers before."""
    wide, high = _scale(axes)
    taken: list[tuple[float, float]] = [(x * wide, y * high) for x, y in (p[-1] for p in meaning.projection.tolist())]
    for points in meaning.projection.tolist():
        for layer, (x, y) in list(enumerate(points))[1:-1]:
            place = x * wide, y * high
            if all(abs(place[0] - a) + abs(place[1] - b) > 0.2 for a, b in taken):
                taken.append(place)
                axes.annotate(
                    f"{layer}", (x, y), (3, 3), "data", "offset points", fontsize=6.5, color=theme.soft,
                    fontfamily=fonts(), bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 0.3},
                )  # fmt: skip


def _number_ends(axes: "Axes", ends: list[tuple[float, float, str]]) -> None:
    """The number of each text behind the end of its path, moved apart where ends are near each other."""
    wide, high = _scale(axes)
    placed: list[tuple[float, float]] = []
    for n in sorted(range(len(ends)), key=lambda n: ends[n][1]):
        x, y, ink = ends[n]
        across, up = x * wide + 0.12, y * high
        while any(abs(across - a) < 0.2 and abs(up - b) < APART for a, b in placed):
            up += 0.04
        placed.append((across, up))
        moved = up - y * high
        axes.annotate(
            visible(f"{n + 1}"), (x, y), (0.12 * 72, moved * 72), "data", "offset points", color=ink, weight="bold",
            fontsize=10, va="center", fontfamily=fonts(),
            arrowprops={"arrowstyle": "-", "color": ink, "linewidth": 0.5, "shrinkA": 0} if moved > 0.05 else None,
        )  # fmt: skip
