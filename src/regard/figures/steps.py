"""A decoding worked through: where each step attended, and what it made of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from regard.figures.files import finished
from regard.figures.heatmap import SIDES, draw_heatmaps
from regard.figures.sheet import (
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
from regard.figures.style import colormap, colour, fonts, ink_on, theme_of, visible, wide

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from regard.analysis.trace import Trace, TraceStep

PITCH = 0.62  # of a step
BARS = 4.6  # width of the candidates
WRITTEN = 2500  # cells whose numbers are written in them; more would be too small to read
PARTS = (("from_state", "state"), ("from_context", "context"), ("bias", "bias"))


def draw_trace(trace: "Trace", path: str | Path | None = None, theme: str = "light") -> "Figure":
    """A decoding worked through.

    On the left the weights over the source tokens; on the right each step's most probable tokens, their probabilities,
    and how much of each logit came from the state and from the context.

    Args:
        trace: the steps.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
        theme: "light" or "dark".
    """
    colours, steps = theme_of(theme), trace.steps
    if not steps:
        return draw_heatmaps(torch.zeros(0, 0, 0), [], [], theme=theme, path=path)
    from matplotlib.colors import Normalize

    names, columns = [f"{step.number}. {step.token}" for step in steps], trace.source_tokens
    step = max([0.56, *(wide(name, 9.0) + 0.08 for name in columns)])
    step = min(step, 0.9)
    down_names = row_names(names, len(names), PITCH)
    across_names = column_names(columns, len(columns), step) if columns else AxisNames([], [], room=0.2)
    corner = corner_room(*SIDES)
    matrix = step * max(1, len(columns))
    made = sheet(
        colours, [matrix], [PITCH * len(steps)], title=f"“{trace.source}”, step by step",
        note=f"weights α and scores e at {trace.site}" if trace.site else "no attention",
        left=max(corner[0], down_names.room), above=max(corner[1], across_names.room),
        right=max(across_names.beyond, 0.3) + BARS,
    )  # fmt: skip
    axes, norm = made.axes[0][0], Normalize(0, 1)
    weights = [one.weights or [0.0] * max(1, len(columns)) for one in steps]
    axes.imshow(
        weights,
        origin="upper",
        cmap=colormap(colours.weights, colours.paper),
        norm=norm,
        aspect="auto",
        interpolation="nearest",
    )
    name_rows(axes, down_names)
    if columns:
        name_columns(axes, across_names)
    name_corner(axes, *SIDES, colours)
    written = steps if len(steps) * len(columns) <= WRITTEN else []
    for i, one in enumerate(written):
        for j, (e, a) in enumerate(zip(one.scores, one.weights, strict=True)):
            ink = ink_on(colour(a, colours.weights))
            axes.text(j, i, f"{a:.2f}\ne {e:.1f}", ha="center", va="center", fontsize=7.5, color=ink,
                      fontfamily=fonts())  # fmt: skip
    made.legend(norm, colours.weights, "attention weight α", [0.0, 0.5, 1.0], ["0", ".5", "1"])
    _draw_predictions(made, steps, made.left + matrix + max(across_names.beyond, 0.3))
    return finished(made.figure, path)


def _draw_predictions(made: Sheet, steps: "Sequence[TraceStep]", left: float) -> None:
    """Each step's candidates as bars: the state's, the context's and the bias's part of the logit."""
    from matplotlib.ticker import MaxNLocator

    theme = made.theme
    axes = add_axes(made.figure, left, made.below, BARS, PITCH * len(steps))
    dress(axes, theme)
    axes.spines[["top", "right", "left"]].set_visible(False)
    inks = dict(zip((name for name, _ in PARTS), (theme.series[0], theme.series[1], theme.series[5]), strict=True))
    for i, step in enumerate(steps):
        count = len(step.predictions)
        for n, p in enumerate(step.predictions):
            y, thick = i + (n - (count - 1) / 2) * 0.8 / count, 0.66 / count
            ends = [0.0, 0.0]  # positive parts to the right of 0, negative ones to the left
            if p.from_state is None:
                axes.barh(y, p.logit, thick, color=inks["from_state"])
                ends = [min(0.0, p.logit), max(0.0, p.logit)]
            for name, _ in PARTS if p.from_state is not None else ():
                value = getattr(p, name)
                axes.barh(y, value, thick, left=ends[value > 0], color=inks[name])
                ends[value > 0] += value
            axes.annotate(
                visible(f"{p.token}  {p.probability:.2f}"), (ends[1], y), (4, 0), "data", "offset points", va="center",
                fontsize=7.5, color=theme.ink if not n else theme.soft, fontfamily=fonts(),
            )  # fmt: skip
    axes.axvline(0, color=theme.soft, linewidth=0.7)
    axes.set(ylim=(len(steps) - 0.5, -0.5), yticks=[])
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.3 * (high - low))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="x", labelsize=7.5, labelcolor=theme.soft, length=2)
    top = made.below + PITCH * len(steps) + 0.06
    made.write(left, top + 0.15, "candidates: logit and probability", 8.5, theme.ink)
    if steps[0].predictions[0].from_state is not None:
        for n, (name, said) in enumerate(PARTS):
            made.write(left + 0.75 * n, top, f"■ {said}", 7.5, inks[name])
