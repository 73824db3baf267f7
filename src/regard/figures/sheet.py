"""A figure laid out in inches: a title, panels in rows and columns that share their names, one legend below."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from regard.figures.style import Theme, colormap, cut, fonts, visible, wide, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

EDGE = 0.16  # around everything
TITLE, NOTE, NAME, SMALL = 10.5, 8.5, 9.0, 7.5  # points
BAR = (1.7, 0.09)  # of the legend: width, height
LEAST = 3.6  # width of a figure
NAMED = 0.115  # the narrowest row or column that has its own name
LETTERS = 32  # of a name, at most


@dataclass(frozen=True)
class AxisNames:
    """The names along one side of a panel.

    Attributes:
        positions: where they stand, in cells.
        texts: the names.
        points: size of the letters.
        turn: degrees; 0 where they stand beside each other.
        room: inches they take, away from the panel.
        beyond: inches by which the last one leaves the panel.
    """

    positions: list[float]
    texts: list[str]
    points: float = NAME
    turn: int = 0
    room: float = 0.0
    beyond: float = 0.0

    @property
    def drawn(self) -> list[str]:
        """The names as matplotlib takes them."""
        return [visible(one) for one in self.texts]


def row_names(names: Sequence[str], count: int, pitch: float, cell: int = 1) -> AxisNames:
    """Names of rows: each where there is room, else positions at round numbers.

    Args:
        names: of the rows; empty for positions.
        count: number of rows.
        pitch: height of a row, in inches.
        cell: positions that a row stands for.
    """
    if names and pitch >= NAMED:
        texts = [cut(one, LETTERS + 8) for one in names]
        points = min(NAME, max(6.0, 0.78 * 72 * pitch))
        return AxisNames(
            [float(n) for n in range(count)], texts, points, 0, max(wide(one, points) for one in texts) + 0.08
        )
    positions, texts = _some_positions(names, count, cell, ceil(0.3 / pitch * cell))
    return AxisNames(positions, texts, 8.0, 0, max(wide(one, 8.0) for one in texts) + 0.08)


def column_names(names: Sequence[str], count: int, pitch: float, cell: int = 1) -> AxisNames:
    """Names of columns: beside each other where they do not meet, else turned; positions where there is no room."""
    if names and pitch >= NAMED:
        texts = [cut(one, LETTERS) for one in names]
        points = min(NAME, max(6.0, 0.78 * 72 * pitch))
        widths = [wide(one, points) for one in texts]
        apart = all((a + b) / 2 + 0.07 <= pitch for a, b in itertools.pairwise(widths))
        turn = 0 if apart else 45 if pitch >= 0.2 else 90
        room, beyond = 0.2, max(0.0, widths[-1] / 2 - pitch / 2)
        if turn:
            room = max(widths) * (1.0 if turn == 90 else 0.71) + 0.16
            last = (width * 0.71 - (count - n - 1) * pitch for n, width in enumerate(widths))
            beyond = max(0.0, *last) if turn == 45 else 0.0
        return AxisNames([float(n) for n in range(count)], texts, points, turn, room, beyond)
    widest = wide(names[-1] if names else f"{count * cell:,}", 8.0) + 0.15
    positions, texts = _some_positions(names, count, cell, ceil(widest / pitch * cell))
    return AxisNames(positions, texts, 8.0, 0, 0.2, wide(texts[-1], 8.0) / 2)


def _some_positions(names: Sequence[str], count: int, cell: int, least: int) -> tuple[list[float], list[str]]:
    """Every so many positions, a round number of them."""
    step = next(n * 10**power for power in range(12) for n in (1, 2, 5) if n * 10**power >= least)
    found = range(0, count * cell, step)
    own = bool(names) and all(one.isdigit() for one in names)  # chosen rows have numbers of their own
    texts = [names[n] if own else f"{n:,}" for n in found]
    return [(n + 0.5) / cell - 0.5 for n in found], texts


@dataclass(frozen=True)
class Sheet:
    """A figure and its panels.

    Attributes:
        figure: the figure.
        theme: its colors.
        axes: the panels by row and column.
        left: where the panels begin, in inches.
        below: inches from the bottom to the lowest panel.
    """

    figure: "Figure"
    theme: Theme
    axes: list[list["Axes"]]
    left: float
    below: float

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        width, height = self.figure.get_size_inches()
        return float(width), float(height)

    def add_axes(self, left: float, bottom: float, wide: float, high: float) -> "Axes":
        """Axes at a place in inches."""
        return add_axes(self.figure, left, bottom, wide, high)

    def write(self, x: float, y: float, text: str, points: float, colour: str = "", **how: Any) -> None:
        """A text at a place in inches."""
        width, height = self.size
        self.figure.text(
            x / width, y / height, visible(text), fontsize=points, color=colour or self.theme.soft,
            fontfamily=fonts(), **how,
        )  # fmt: skip

    def legend(
        self, norm: "Normalize", anchors: Any, label: str, ticks: Sequence[float], texts: Sequence[str],
        note: str = "", under: float = 0.16,
    ) -> None:  # fmt: skip
        """The one scale of all panels, below them: of one size in every figure.

        Args:
            norm: from numbers to shares of the scale.
            anchors: of the scale.
            label: what the numbers are.
            ticks, texts: the numbers that are marked, and how they are written.
            note: what else a reader must know, beside the scale.
            under: inches below the panels.
        """
        from matplotlib.cm import ScalarMappable

        width, _ = self.size
        left = self.left if self.left + BAR[0] + EDGE <= width else EDGE
        top = self.below - under
        self.write(left, top, label, SMALL, va="top")
        place = self.add_axes(left, top - 0.17 - BAR[1], *BAR)
        place.set_label("<colorbar>")
        mapped = ScalarMappable(norm, colormap(anchors, self.theme.paper))
        bar = self.figure.colorbar(mapped, cax=place, orientation="horizontal", ticks=list(ticks))
        bar.ax.set_xticklabels(list(texts))
        bar.ax.tick_params(
            labelsize=SMALL, length=2, pad=1.5, color=self.theme.line, labelcolor=self.theme.soft,
            labelfontfamily=fonts(),
        )  # fmt: skip
        bar.ax.minorticks_off()
        bar.outline.set(edgecolor=self.theme.line, linewidth=0.6)
        beside = left + max(BAR[0], wide(label, SMALL)) + 0.3
        lines = wrapped(note, SMALL, max(1.0, width - beside - EDGE))
        for n, line in enumerate(lines):
            self.write(beside, top - 0.145 * n, line, SMALL, va="top")


def add_axes(figure: "Figure", left: float, bottom: float, wide: float, high: float) -> "Axes":
    """Axes at a place in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, bottom / height, wide / width, high / height))


def sheet(
    theme: Theme, widths: Sequence[float], heights: Sequence[float], *, title: str = "", note: str = "",
    left: float = 0.0, above: float = 0.0, right: float = 0.0, head: float = 0.0, gap: float = 0.2,
    foot: float = 0.62,
) -> Sheet:  # fmt: skip
    """An empty figure with panels.

    Args:
        theme: its colors.
        widths, heights: of the columns and the rows of panels, in inches.
        title: in the first line; wrapped where it is long.
        note: under the title, in small letters.
        left: room for the names of rows, beside the first column.
        above: room for the names of columns, above the first row.
        right: room beyond the last column.
        head: room for a name above every panel.
        gap: between panels.
        foot: room below the panels, for a legend.
    """
    from matplotlib.figure import Figure

    inner = left + sum(widths) + gap * (len(widths) - 1) + right
    width = max(LEAST, inner + 2 * EDGE)
    titles = wrapped(title, TITLE, width - 2 * EDGE, bold=True)
    notes = wrapped(note, NOTE, width - 2 * EDGE)
    lead = 0.2 * len(titles) + 0.165 * len(notes) + (0.12 if titles or notes else 0)
    body = above + sum(head + height for height in heights) + gap * (len(heights) - 1)
    height = EDGE + lead + body + foot + EDGE
    figure = Figure(figsize=(width, height), facecolor=theme.paper)
    made = Sheet(figure, theme, [], EDGE + left, EDGE + foot)
    y = height - EDGE
    for line in titles:
        made.write(EDGE, y, line, TITLE, theme.ink, va="top", weight="bold")
        y -= 0.2
    for line in notes:
        made.write(EDGE, y, line, NOTE, va="top")
        y -= 0.165
    y -= above + (0.12 if titles or notes else 0)
    for high in heights:
        y -= head + high
        x, row = EDGE + left, []
        for across in widths:
            row.append(add_axes(figure, x, y, across, high))
            x += across + gap
        made.axes.append(row)
        y -= gap
    for axes in figure.axes:
        dress(axes, theme)
    return made


def dress(axes: "Axes", theme: Theme) -> None:
    """Axes in a theme's colors, without marks."""
    axes.set_facecolor(theme.paper)
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0, labelcolor=theme.ink, color=theme.line, labelfontfamily=fonts(), labelsize=NAME)
    for edge in axes.spines.values():
        edge.set(color=theme.line, linewidth=0.8)


def name_rows(axes: "Axes", names: AxisNames) -> None:
    """Names left of a panel's rows."""
    axes.set_yticks(names.positions, names.drawn)
    axes.tick_params(axis="y", labelsize=names.points, pad=4)


def name_columns(axes: "Axes", names: AxisNames) -> None:
    """Names above a panel's columns."""
    how: dict[str, Any] = {"ha": "center" if names.turn == 0 else "left", "rotation_mode": "anchor"}
    if names.turn == 90:
        how["va"] = "center"
    axes.set_xticks(names.positions, names.drawn, rotation=names.turn, **how)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", labelsize=names.points, pad=4)


def name_corner(axes: "Axes", down: str, across: str, theme: Theme) -> None:
    """What rows and columns are, in the corner between their names."""
    how: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL, "color": theme.soft, "ha": "right"}
    axes.annotate(visible(f"{across}\n{down}"), (0, 1), (-5, 5), "axes fraction", va="bottom", linespacing=1.35,
                  fontfamily=fonts(), **how)  # fmt: skip


def corner_room(down: str, across: str) -> tuple[float, float]:
    """Width and height that `name_corner` takes, in inches."""
    return max(wide(down, SMALL), wide(across, SMALL)) + 0.1, 0.36


def fit(axes: "Axes", rows: int, columns: int) -> None:
    """The limits of a panel of cells, the first row on top."""
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
