"""Figures of faithfulness: deletion and insertion curves, and gains beside those of random orders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.figures.files import finished
from regard.figures.sheet import NOTE, SMALL, TITLE
from regard.figures.style import Theme, colormap, colour, fonts, ink_on, theme_of, visible, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines = tuple[Sequence[float], Sequence[float], Sequence[float]]
STYLES = "-", "--", ":"  # one after the other, once a theme's colors have all been used


def draw_faithfulness(
    curves: Mapping[str, Lines], gains: Mapping[str, tuple[float, bool]], interval: tuple[float, float],
    title: str = "", path: str | Path | None = None, theme: str = "light",
) -> "Figure":  # fmt: skip
    """A figure of three panels: deletion curves, insertion curves, gains.

    Args:
        curves: {explanation: (shares, deletion, insertion)}.
        gains: {explanation: (gain, whether it beats random orders)}.
        interval: of the gains of random orders, shaded.
        title: above the figure.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
        theme: "light" or "dark".

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
        ChoiceError: there is no such theme.
    """
    colours = theme_of(theme)
    series = colours.series
    figure = _figure(10.5, max(2.6, 0.28 * len(gains) + 1.2) + 0.18 * -(-len(curves) // 6), title, colours)
    left, middle, right = figure.subplots(1, 3)
    for number, (name, (shares, deletion, insertion)) in enumerate(curves.items()):
        style = STYLES[number // len(series) % len(STYLES)]
        for axes, values in ((left, deletion), (middle, insertion)):
            axes.plot(shares, values, style, color=series[number % len(series)], linewidth=1.4, label=visible(name))
    for axes, name in ((left, "deletion: words taken out"), (middle, "insertion: words put in")):
        _name(axes, name, colours)
        axes.set_xlabel("share of the words, in each explanation's order", **_text(colours.soft))
        axes.set_ylim(bottom=0)
        _dress(axes, colours)
    left.set_ylabel("probability", **_text(colours.soft))
    _draw_gains(right, gains, interval, colours)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower left", ncols=6, frameon=False,
        prop={"family": fonts(), "size": SMALL}, labelcolor=colours.ink,
    )  # fmt: skip
    return finished(figure, path)


def draw_reasons(
    shares: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str],
    gains: Mapping[str, tuple[float, bool]], interval: tuple[float, float], path: str | Path | None = None,
    title: str = "", theme: str = "light",
) -> "Figure":  # fmt: skip
    """A figure of what each word of an output came from, and beside it the gains of all explanations.

    Args:
        shares: `[rows, columns]`.
        rows: words of the output.
        columns: words of the input.
        gains, interval: as for `draw_faithfulness`; there may be none.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
        title: above the figure.
        theme: "light" or "dark".

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
        ChoiceError: there is no such theme.
    """
    colours = theme_of(theme)
    longest = max((len(visible(column)) for column in columns), default=1)
    wide = max(2.0, max(0.42, 0.1 * min(12, longest)) * len(columns) + 1.2)
    high = max(2.4, 0.34 * len(rows) + 1.4, 0.28 * len(gains) + 1.2)
    figure = _figure(wide + 4.6 * bool(gains), high, title, colours)
    panels = figure.subplots(1, 1 + bool(gains), squeeze=False, width_ratios=[wide, 4.6][: 1 + bool(gains)])[0]
    if rows and columns:
        panels[0].imshow(
            shares,
            origin="upper",
            cmap=colormap(colours.weights, colours.paper),
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
        )
        _name_axes(panels[0], rows, columns)
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                if share >= 0.1:
                    ink = ink_on(colour(share, colours.weights))
                    panels[0].text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=SMALL, color=ink,
                                   fontfamily=fonts())  # fmt: skip
        _dress(panels[0], colours, "top", "right", "left", "bottom")
        panels[0].tick_params(labelsize=10, labelcolor=colours.ink)
    else:
        panels[0].axis("off")
    _name(panels[0], "contributions: percent of what the input gave", colours)
    if gains:
        _draw_gains(panels[1], gains, interval, colours)
    return finished(figure, path)


def _figure(width: float, height: float, title: str, theme: Theme) -> "Figure":
    """An empty figure with its title, which makes it as much higher as it has lines."""
    from matplotlib.figure import Figure

    lines = wrapped(title, TITLE, width - 0.3, bold=True)
    figure = Figure(figsize=(width, height + 0.2 * len(lines)), layout="constrained", facecolor=theme.paper)
    if lines:
        figure.suptitle(
            "\n".join(map(visible, lines)), x=0.01, ha="left", fontsize=TITLE, fontweight="bold", color=theme.ink,
            fontfamily=fonts(),
        )  # fmt: skip
    return figure


def _text(color: str) -> dict[str, Any]:
    """How a panel's name and the names of its axes are written."""
    return {"fontsize": NOTE, "color": color, "fontfamily": fonts()}


def _name(axes: "Axes", name: str, theme: Theme) -> None:
    """The name of a panel, above it on the left."""
    axes.set_title(name, loc="left", **_text(theme.ink))


def _dress(axes: "Axes", theme: Theme, *hidden: str) -> None:
    """A panel in a theme's colors, without the edges that are named: by default, those above and on the right."""
    axes.set_facecolor(theme.paper)
    axes.spines[:].set_color(theme.line)
    axes.spines[list(hidden or ("top", "right"))].set_visible(False)
    axes.tick_params(labelsize=SMALL, color=theme.line, labelcolor=theme.soft, labelfontfamily=fonts())


def _draw_gains(
    axes: "Axes", gains: Mapping[str, tuple[float, bool]], interval: tuple[float, float], theme: Theme
) -> None:
    """Bars, filled where an explanation beats random orders, whose interval is shaded."""
    axes.axvspan(*interval, color=theme.line, alpha=0.45, linewidth=0)
    axes.axvline(0, color=theme.soft, linewidth=0.8)
    faces = [theme.soft if believed else theme.paper for _, believed in gains.values()]
    axes.barh(range(len(gains)), [gain for gain, _ in gains.values()], 0.66, color=faces, edgecolor=theme.soft)
    axes.set_yticks(range(len(gains)), [visible(name) for name in gains])
    axes.invert_yaxis()
    _name(axes, "gain; filled: p ≤ 0.05; shaded: 95 % of random orders", theme)
    _dress(axes, theme, "top", "right", "left")
    axes.tick_params(axis="y", labelsize=NOTE, labelcolor=theme.ink, length=0)


def _name_axes(axes: "Axes", rows: Sequence[str], columns: Sequence[str]) -> None:
    """Name rows and columns, the columns above the cells."""
    shown = [visible(name) for name in columns]
    turned = max(map(len, shown)) > 9
    side = "left" if turned else "center"
    axes.set_xticks(range(len(columns)), shown, rotation=42 * turned, ha=side, rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [visible(name) for name in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
