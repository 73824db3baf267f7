"""Figures: the alignment heatmap and the worked-through decoding. Query down, key across."""

import os
import unicodedata
import warnings
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from math import ceil
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from torch import Tensor

from regard.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from regard.analysis.meaning import Meaning
    from regard.analysis.trace import Trace, TraceStep

COLOURS = "Blues"
FONTS = (  # in this order, those that are installed; a letter is drawn by the first font that has it
    "DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "IPAGothic", "Unifont", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari",
)  # fmt: skip
PANELS = 16
SIDES = ("output (query) ↓", "source (key) →")
SIDES_BRIEFLY = ("query ↓", "source (key) →")  # beside one or two rows
MADE = b"drawn by regard"  # marks a file as drawn by regard
NUMBERS_UP_TO = 144  # cells: beyond that, numbers inside them would be too small to read


def save_heatmap(
    weights: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], path: str | Path, title: str = ""
) -> None:
    """Write a heatmap with tokens on both axes; the ending of `path` says how (.png, .svg, .pdf).

    Args:
        weights: one row per query, one column per key; white is 0, dark blue is 1.
        rows: the queries' names, from top to bottom.
        columns: the keys' names, from left to right.
        path: where to.
        title: above the picture.

    Raises:
        DataError: the ending is none that can be drawn, or the folder does not exist.
    """
    save_figure(heatmap(weights, rows, columns, title, SIDES if len(rows) > 2 else SIDES_BRIEFLY), path)


def heatmap(
    weights: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str = "",
    sides: tuple[str, str] = ("query ↓", "key →"),
) -> "Figure":  # fmt: skip
    """A figure of weights between named queries (down) and named keys (across), and what each of the sides is."""
    from matplotlib.figure import Figure

    longest = max(map(_width, rows), default=1), max(map(_width, columns), default=1)
    cell = 0.52 if max(len(rows), len(columns)) <= 20 else 0.34
    width = max(3.2, cell * max(1, len(columns)) + 0.1 * longest[0] + 1.5)
    height = max(1.8, cell * max(1, len(rows)) + 0.1 * longest[1] + 0.9)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    if not rows or not columns:
        axes.text(0.5, 0.5, "nothing to look at", ha="center", va="center")
        axes.axis("off")
        return figure
    image = axes.imshow(weights, cmap=COLOURS, vmin=0, vmax=1, aspect="equal")
    name_axes(axes, rows, columns)
    _name_sides(axes, *sides)
    if len(rows) * len(columns) <= NUMBERS_UP_TO:
        for i, row in enumerate(weights):
            for j, weight in enumerate(row):
                if weight >= 0.005:
                    shown = f"{weight:.2f}".removeprefix("0")
                    axes.text(
                        j, i, shown, ha="center", va="center", fontsize=8, color="white" if weight > 0.55 else "#333"
                    )
    axes.set_title(title, fontsize=9, color="#555")
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 0.5, 1])
    bar.set_label("attention weight", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def draw_panels(
    weights: Tensor, rows: Sequence[str], columns: Sequence[str], cell: tuple[int, int], path: str | Path | None = None
) -> "Figure":
    """A figure of one heatmap per panel (the first 16), written to `path` if there is one.

    Args:
        weights: `[panels, rows, columns]`.
        rows, columns: names of the rows and columns.
        cell: how many queries and keys a point stands for; (1, 1) where every weight is a point of its own.
        path: the file; its ending (.png, .svg, .pdf) gives the format.
    """
    from matplotlib.colors import Normalize, PowerNorm
    from matplotlib.figure import Figure

    large = cell != (1, 1)
    if (len(weights) == 1 and not large) or not weights.numel():
        figure = heatmap(weights[0].tolist() if len(weights) else [], rows if len(weights) else [], columns)
    else:
        shown = weights[:PANELS]
        across = min(4, len(shown))
        down = ceil(len(shown) / across)
        size = (3.4, 3.4) if large else (0.6 + 0.28 * max(3, len(columns)), 0.7 + 0.28 * max(3, len(rows)))
        figure = Figure(figsize=(across * size[0] + 0.8, down * size[1]), layout="constrained")
        for number, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
            if number >= len(shown):
                axes.axis("off")
                continue
            # a large map's weights are small: its colours run to its own maximum, and rise early
            colours = PowerNorm(0.4, 0, max(1e-9, float(shown[number].max()))) if large else Normalize(0, 1)
            axes.imshow(shown[number].tolist(), cmap=COLOURS, norm=colours, aspect="auto", interpolation="nearest")
            name_axes(axes, rows, columns)
            axes.set_title(f"head {number}", fontsize=9, color="#555")
            axes.tick_params(labelsize=7)
        what = (
            f"; each point is the largest weight of {cell[0]:,} × {cell[1]:,}, each head to its own maximum"
            if large
            else ""
        )
        figure.suptitle(f"query ↓, key →{what}", fontsize=9, color="#555")
    if path is not None:
        save_figure(figure, path)
    return figure


def as_png(figure: "Figure") -> bytes:
    """A figure as a notebook shows it."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def draw_meaning(meaning: "Meaning", path: str | Path | None = None) -> "Figure":
    """A word's way through the layers in every text, in the plane in which all its vectors differ most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes, beside = figure.subplots(1, 2, width_ratios=(2.2, 1))
    handles = []
    for n, (text, points) in enumerate(zip(meaning.texts, meaning.projection.tolist(), strict=True)):
        across, up = zip(*points, strict=True)
        (line,) = axes.plot(across, up, "-o", markersize=3.5, linewidth=1.2, color=f"C{n % 10}")
        axes.annotate(
            f"{n + 1}", points[-1], textcoords="offset points", xytext=(6, 4), color=f"C{n % 10}", weight="bold"
        )
        for layer in range(1, len(points) - 1):
            axes.annotate(
                f"{layer}", points[layer], textcoords="offset points", xytext=(3, 3), fontsize=6, color="#888"
            )
        moved = ", ".join(word for word, _ in meaning.after[n][:4])
        handles.append((line, "\n".join(wrap(f"{n + 1}  {visible(text)}", 44)) + f"\n    near: {visible(moved)}"))
    axes.set_xlabel(f"first direction: {meaning.explained[0]:.0%} of the variance", fontsize=8, color="#555")
    axes.set_ylabel(f"second: {meaning.explained[1]:.0%}", fontsize=8, color="#555")
    axes.set_title(
        f"“{visible(meaning.word)}” from before the first block to behind the last (small numbers: layers)",
        fontsize=9, color="#555", loc="left",
    )  # fmt: skip
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    beside.axis("off")
    beside.legend(*zip(*handles, strict=True), loc="upper left", fontsize=8, frameon=False, labelspacing=1.2)
    if path is not None:
        save_figure(figure, path)
    return figure


def save_trace(trace: "Trace", path: str | Path) -> None:
    """Write a decoding worked through: where each step looked, and what it made of it.

    On the left the weights over the source tokens; on the right each step's most probable tokens, their
    probabilities, and how much of each logit came from the state and from the context.
    """
    from matplotlib.figure import Figure

    steps = trace.steps
    if not steps:
        save_figure(heatmap([], [], []), path)
        return
    height = 1.6 + 0.75 * len(steps)
    columns = len(trace.source_tokens)
    figure = Figure(figsize=(2.6 + 0.62 * columns + 4.8, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[0.62 * columns + 1.6, 4.8])
    weights = [step.weights or [0.0] * columns for step in steps]
    left.imshow(weights, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    name_axes(left, [f"{step.number}. {step.token}" for step in steps], trace.source_tokens)
    _name_sides(left, *SIDES)
    for i, step in enumerate(steps):
        for j, (e, a) in enumerate(zip(step.scores, step.weights, strict=True)):
            left.text(
                j, i, f"{a:.2f}\ne {e:.1f}", ha="center", va="center", fontsize=7, color="white" if a > 0.55 else "#333"
            )
    left.set_title(f"weights α, scores e ({trace.site or 'no attention'})", fontsize=9, color="#555")
    _draw_predictions(right, steps)
    save_figure(figure, path)


def _draw_predictions(axes: "Axes", steps: "Sequence[TraceStep]") -> None:
    """Each step's candidates as bars: the state's, the context's and the bias's part of the logit."""
    parts = (("from_state", "state", "#4c78a8"), ("from_context", "context", "#f58518"), ("bias", "bias", "#9d9d9d"))
    for i, step in enumerate(steps):
        count = len(step.predictions)
        for n, p in enumerate(step.predictions):
            y, thick = i + (n - (count - 1) / 2) * 0.8 / count, 0.68 / count
            if p.from_state is None:
                axes.barh(y, p.logit, thick, color="#4c78a8")
                ends = [0.0, p.logit]
            else:
                ends = [0.0, 0.0]  # positive parts to the right of 0, negative ones to the left
                for name, _, colour in parts:
                    value = getattr(p, name)
                    axes.barh(y, value, thick, left=ends[value > 0], color=colour)
                    ends[value > 0] += value
            axes.text(
                max(ends) + 0.3,
                y,
                f"{visible(p.token)}  {p.probability:.2f}",
                va="center",
                fontsize=7,
                fontfamily=fonts(),
            )
    axes.axvline(0, color="#333", linewidth=0.8)
    axes.set(ylim=(len(steps) - 0.5, -0.5), yticks=[])
    axes.set_xlim(right=axes.get_xlim()[1] * 1.35)
    axes.set_xlabel("logit", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if steps[0].predictions[0].from_state is not None:
        from matplotlib.patches import Patch

        axes.legend(
            handles=[Patch(color=c, label=name) for _, name, c in parts],
            fontsize=7,
            loc="lower right",
            ncols=3,
            frameon=False,
            bbox_to_anchor=(1, 1),
        )
    axes.set_title("candidates: logit and probability", fontsize=9, color="#555", loc="left")


def name_axes(axes: "Axes", rows: Sequence[str], columns: Sequence[str]) -> None:
    """Name rows and columns, the columns above the picture."""
    shown = [visible(name) for name in columns]
    steep = len(columns) > 14 or max(map(_width, shown)) > 9
    axes.set_xticks(
        range(len(columns)),
        shown,
        rotation=60 if steep else 0,
        ha="left" if steep else "center",
        rotation_mode="anchor",
    )
    axes.set_yticks(range(len(rows)), [visible(name) for name in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelfontfamily=fonts(), labelsize=10)
    for edge in axes.spines.values():
        edge.set_color("#bbb")


def _name_sides(axes: "Axes", query: str, key: str) -> None:
    axes.set_xlabel(key, fontsize=8, color="#555", loc="left")
    axes.set_ylabel(query, fontsize=8, color="#555", loc="top")


def visible(name: str) -> str:
    """A name in the order in which it is drawn: right-to-left scripts are shaped and turned round."""
    name = "".join(
        letter if letter.isprintable() or letter in " \n\t" or unicodedata.category(letter) == "Cf" else "\ufffd"
        for letter in name
    )
    if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in name):
        import arabic_reshaper
        from bidi.algorithm import get_display

        name = str(get_display(arabic_reshaper.reshape(name)))
    return name.replace("$", r"\$")


@cache
def fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [name for name in FONTS if name in installed]


def _width(name: str) -> int:
    """About how many Latin letters wide a name is."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in name)


def check_target(path: str | Path) -> Path:
    """A path to which a figure can be drawn.

    Raises:
        DataError: the ending is none that can be drawn, the folder does not exist or may not be written to, or there
            is a folder of that name.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    path = Path(path)
    if path.suffix.lower().removeprefix(".") not in FigureCanvasBase.get_supported_filetypes():
        raise DataError(
            f"{path}: cannot draw {path.suffix or 'a file without an ending'!r}: end it in .png, .svg or .pdf"
        )
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise DataError(f"{path}: a folder; name a file in it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DataError(f"{path}: may not be written to")
    return path


def is_drawn(path: Path) -> bool:
    """Whether a file holds nothing that would be lost if it were drawn anew: it is empty, or a figure of regard's."""
    return not path.exists() or not path.stat().st_size or MADE in path.read_bytes()


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure to a file.

    Raises:
        DataError: as `check_target`; there is no room for it.
    """
    import matplotlib

    from regard.storage import replacing

    path = check_target(path)
    ending = path.suffix.lower()
    # text stays text in an SVG, so the reader's own fonts serve every script
    style: dict[Any, Any] = {"svg.fonttype": "none", "font.family": fonts(), "svg.hashsalt": "regard"}
    with matplotlib.rc_context(style), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        about: dict[str, dict[str, Any]] = {
            ".svg": {"Date": None, "Description": MADE.decode()}, ".pdf": {"Subject": MADE.decode()},
            ".png": {"Description": MADE.decode()},
        }  # fmt: skip
        try:
            with replacing(path) as file:
                kind = ending.removeprefix(".")
                figure.savefig(file, format=kind, dpi=160, bbox_inches="tight", metadata=about.get(ending))
        except (OSError, AttributeError) as error:  # the second is what a .pdf's writer makes of the first
            raise DataError(f"{path}: could not be written: {error}") from error
    if ending != ".svg" and any("missing from font" in str(warning.message) for warning in caught):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn(
                f"{path}: no installed font has some of the letters: install one (Debian: fonts-noto-core, "
                "fonts-noto-cjk), or draw an .svg",
                stacklevel=2,
            )
