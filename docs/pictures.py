"""Draw the pictures of docs/attention.md: python docs/pictures.py

A picture's title is the code that made it: it is run, and what it names `mask`, `bias`, `table` or `scores` is drawn,
asked of regard's own objects. `tests/test_pictures.py` draws all of them again and compares.
"""

import re
from collections.abc import Callable
from io import BytesIO
from math import ceil, copysign, sqrt
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import regard
from regard.attention.biases import as_bias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = Path(__file__).parent / "pictures"
ALLOWED, FORBIDDEN, INK, PALE = "#0072b2", "#e4e4e4", "#222222", "#666666"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "regard",
    "font.sans-serif": ["DejaVu Sans"],
    "font.monospace": ["DejaVu Sans Mono"],
}
CELL, STEP, HEIGHT, FOOT = 0.2, 1.25, 2.6, 0.32  # inches: a cell, the step of widths, a picture, its legend

Cells = list[list[float | None]]  # None is forbidden


class Picture(NamedTuple):
    """One picture.

    Attributes:
        code: what is drawn, and the title.
        says: one sentence under the title, and the alternative text on the page.
        shape: of the scores, (*batch, T, S).
        panels: the names of the entries along the batch axis.
        place: i + place is where query i stands, in pictures of what is measured from there.
        names: of the queries and keys, instead of 0, 1, 2 …
        numbers: write each bias into its cell.
    """

    code: str
    says: str
    shape: tuple[int, ...]
    panels: tuple[str, ...] = ("",)
    place: int | None = None
    names: tuple[str, ...] | None = None
    numbers: bool = False


SENTENCES = ("sentence 0", "sentence 1")
HEADS = tuple(f"head {h}" for h in range(4))
NUMBERS = ("1", "1", "1", "2", "2", "-1")

PICTURES = {
    "causal": Picture(
        "mask = causal()", "A query attends to the keys up to its own position, and to no later one.", (6, 6), place=0
    ),
    "causal-more-keys": Picture(
        "mask = causal()",
        "More keys than queries: the last query is at the position of the last key.",
        (4, 7),
        place=3,
    ),
    "causal-offset": Picture(
        "mask = causal(offset=1)", "The same sizes, with query 0 placed at the position of key 1.", (4, 7), place=1
    ),
    "window": Picture("mask = window(2)", "Two keys on either side of the query's position.", (6, 6), place=0),
    "window-left": Picture(
        "mask = window(left=2, right=0)", "Two keys before the query's position, none after it.", (6, 6), place=0
    ),
    "prefix": Picture("mask = prefix(2)", "Keys 0 and 1, for every query.", (6, 6)),
    "prefix-lm": Picture(
        "mask = causal() | prefix(3)",
        "A prefix language model: the first three tokens attend to each other, the others are causal.",
        (6, 6),
        place=0,
    ),
    "documents": Picture(
        "ids = tensor([1, 1, 1, 2, 2, -1])\nmask = documents(ids)",
        "Packed texts: tokens with equal ids attend to each other, -1 attends to nothing.",
        (6, 6),
        names=NUMBERS,
    ),
    "documents-causal": Picture(
        "ids = tensor([1, 1, 1, 2, 2, -1])\nmask = causal() & documents(ids)",
        "Packed texts of a language model: causal, and only within the same text.",
        (6, 6),
        place=0,
        names=NUMBERS,
    ),
    "padding": Picture(
        "mask = padding(tensor([5, 3]))",
        "Sentences of 5 and 3 tokens: no query attends to the padding.",
        (2, 5, 5),
        SENTENCES,
    ),
    "padding-queries": Picture(
        "mask = padding(tensor([5, 3]), query_lengths=tensor([4, 2]))",
        "The queries have lengths too, 4 and 2: a padding query attends to nothing.",
        (2, 5, 5),
        SENTENCES,
    ),
    "blocks": Picture(
        "layout = tensor([[1, 0], [1, 1]]) > 0\nmask = blocks(layout, size=3)",
        "Each entry of the layout is a 3 × 3 block.",
        (6, 6),
    ),
    "allow": Picture(
        "i, j = arange(6)[:, None], arange(6)\nmask = allow((i - j) % 3 == 0)",
        "Any bool tensor; here every third key.",
        (6, 6),
    ),
    "combination": Picture(
        "past = causal() & ~window(0)\nmask = past | prefix(1)",
        "Up to the query's position and (&) not (~) at it; or (|) key 0.",
        (6, 6),
        place=0,
    ),
    "alibi": Picture(
        "bias = alibi(heads=4)",
        "The bias falls with the distance: by 1/4, 1/16, 1/64 and 1/256 per position in the four heads.",
        (4, 5, 5),
        HEADS,
        place=0,
    ),
    "alibi-causal": Picture(
        "bias = alibi(heads=4)\nmask = causal()",
        "The same under a causal mask: the form of the paper.",
        (4, 5, 5),
        HEADS,
        place=0,
    ),
    "relative-bias": Picture(
        "bias = RelativeBias(1, buckets=8, max_distance=10)\n"
        "bias.weight.data[:, 0] = tensor([0, -1, -2, -3, 0, 1, 2, 3])",
        "One learned number per bucket; distances 0 and 1 have their own, 2 to 4 share one, 5 and more share the last. "
        "Keys after the query have other buckets than keys before it.",
        (1, 8, 8),
        numbers=True,
    ),
    "float-tensor": Picture(
        "bias = zeros(6, 6)\nbias[:, 0] = 2\nbias[3, 4] = -4",
        "Any float tensor: here key 0 is favored by all queries, and key 4 is disfavored by query 3.",
        (6, 6),
        numbers=True,
    ),
    "sinusoidal": Picture(
        "table = sinusoidal(length=12, dim=12)",
        "A row encodes a position: high frequencies on the left, low on the right; sine and cosine alternate.",
        (12, 12),
    ),
    "rotary": Picture(
        "turned = Rotary(32)(ones(64, 32))\nscores = turned @ turned.T / 32",
        "Equal vectors at 64 positions, rotated: their score depends on the distance alone.",
        (8, 8),
    ),
}


def run(code: str) -> dict[str, Any]:
    """The names that a title's code makes."""
    names = {name: getattr(regard, name) for name in regard.__all__} | {
        name: getattr(torch, name) for name in ("tensor", "arange", "zeros", "ones")
    }
    exec(code, names)
    return names


def cells(picture: Picture, made: dict[str, Any]) -> list[Cells]:
    """What is drawn, one grid per panel: 1 where a mask allows, a bias's numbers, None where looking is forbidden."""
    shape = picture.shape
    rows, columns = shape[-2:]
    if "table" in made or "scores" in made:
        values = made.get("table", made.get("scores"))[:rows, :columns]
    elif "bias" in made:
        values = as_bias(made["bias"]).tile(torch.arange(rows), torch.arange(columns), shape)
    else:
        values = torch.ones(shape)
    if "mask" in made:
        values = values.masked_fill(~made["mask"].full(shape, torch.device("cpu")), float("nan"))
    grids = values.detach().expand(shape).reshape(-1, rows, columns).tolist()
    return [[[None if v != v else round(v, 4) for v in row] for row in grid] for grid in grids]


def draw(picture: Picture) -> "Figure":
    """A picture: title, sentence, the cells with queries down and keys across, and what the colours mean."""
    from matplotlib.figure import Figure

    made = run(picture.code)
    grids = cells(picture, made)
    shade, marks = scale(made, [v for grid in grids for row in grid for v in row if v is not None])
    lines = picture.code.splitlines()
    parts = len(grids) + ("scores" in made)
    width = STEP * max(2, ceil(1.5 * parts if parts > 1 else 0), ceil((0.15 + 0.0586 * max(map(len, lines))) / STEP))
    figure = Figure(figsize=(width, HEIGHT), facecolor="white")
    y = HEIGHT - 0.14
    for line in lines:
        figure.text(0.1 / width, y / HEIGHT, line, fontsize=7, family="monospace", color=INK)
        y -= 0.14
    y -= 0.02
    for line in wrap(picture.says, int(width * 18)):
        figure.text(0.1 / width, y / HEIGHT, line, fontsize=6.5, color=PALE)
        y -= 0.125
    rows, columns = len(grids[0]), len(grids[0][0])
    head = 0.5 if any(picture.panels) else 0.34  # above the cells: the panel's name, the keys' numbers
    cell = min(CELL, 1.8 / columns, (y - FOOT - head) / rows)
    for n, (name, grid) in enumerate(zip(picture.panels, grids, strict=True)):
        left = width / parts * n + (width / parts - cell * columns) / 2 + 0.12
        bottom = FOOT + (y - FOOT - head - cell * rows) / 2
        axes = figure.add_axes((left / width, bottom / HEIGHT, cell * columns / width, cell * rows / HEIGHT))
        draw_cells(axes, grid, [[FORBIDDEN if v is None else shade(v) for v in row] for row in grid], picture, cell)
        names = (
            ("coordinate →", "position ↓")
            if "table" in made
            else ("key's id →", "query's id ↓")
            if picture.names
            else ("key →", "query ↓")
        )
        axes.text(-0.5, -0.5 - 0.35 / cell, name, fontsize=7, color=INK)
        axes.text(-0.5, -0.5 - 0.19 / cell, names[0], fontsize=6.5, color=PALE)
        axes.text(-0.5 - 0.04 / cell, -0.5 - 0.045 / cell, names[1], fontsize=6.5, color=PALE, ha="right")
    if "scores" in made:
        draw_curve(figure, made["scores"][0].tolist(), (width / 2 + 0.4, FOOT + 0.1, width / 2 - 0.6, y - FOOT - 0.25))
    keys = [(shade(mark), name) for mark, name in marks] if not picture.numbers else []
    lead = (
        "a cell's number is added to its score" if picture.numbers else "added to the scores:" if "bias" in made else ""
    )
    draw_legend(figure, lead, keys + [(FORBIDDEN, "masked")] * ("mask" in made), picture.place is not None)
    return figure


def scale(made: dict[str, Any], values: list[float]) -> tuple[Callable[[float], str], list[tuple[float, str]]]:
    """The colour of a value, and the values whose colours the legend shows."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    def colour(share: float) -> str:
        """Orange below 0, purple above."""
        return to_hex(colormaps["PuOr"](0.5 + 0.44 * round(share, 2)))

    low, high = min(values), max(values)
    top = max(-low, high)
    if "scores" in made:
        return lambda v: colour((v - low) / (high - low)), [(v, f"{v:.2g}") for v in (low, (low + high) / 2, high)]
    if "table" in made:
        return colour, [(v, f"{v:g}") for v in (-1, -0.5, 0, 0.5, 1)]
    if "bias" in made:  # by the square root, so that the small ones can be seen
        marks = [v for v in (-top, -top / 4, 0, top / 4, top) if low <= v <= high]
        return lambda v: colour(copysign(sqrt(abs(v) / top), v)), [(v, f"{round(v, 2):g}") for v in marks]
    return {1.0: ALLOWED}.__getitem__, [(1, "allowed")]


def draw_cells(axes: "Axes", grid: Cells, colours: list[list[str]], picture: Picture, cell: float) -> None:
    """The squares, a stroke through the forbidden ones, a dot at each query's place."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Line

    rows, columns = len(grid), len(grid[0])
    places = [(j, i) for i in range(rows) for j in range(columns)]
    fill = [colours[i][j] for j, i in places]
    axes.scatter(*zip(*places, strict=True), s=(68 * cell) ** 2, c=fill, marker="s", linewidths=0, clip_on=False)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    strokes = [end for j, i in places if grid[i][j] is None for end in ((j - 0.3, i + 0.3), (j + 0.3, i - 0.3))]
    if strokes:
        axes.add_patch(
            PathPatch(Line(strokes, [Line.MOVETO, Line.LINETO] * (len(strokes) // 2)), edgecolor="#a8a8a8", lw=0.6)
        )
    if picture.place is not None:
        dots = [(i + picture.place, i) for i in range(rows) if 0 <= i + picture.place < columns]
        axes.plot(*zip(*dots, strict=True), "o", ms=3.2, mfc="white", mec=INK, mew=0.5, clip_on=False)
    if picture.numbers:
        for j, i in places:
            value = grid[i][j]
            dark = value is not None and abs(value) > 1.5
            axes.text(j, i, f"{value:g}", ha="center", va="center", fontsize=6, color="white" if dark else INK)
    names = picture.names or tuple(map(str, range(max(rows, columns))))
    every = 1 if cell > 0.13 else 3
    axes.set_xticks(range(0, columns, every), names[:columns:every])
    axes.set_yticks(range(0, rows, every), names[:rows:every])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=6, pad=1, labelcolor=INK)
    axes.spines[:].set_visible(False)


def draw_curve(figure: "Figure", scores: list[float], place: tuple[float, float, float, float]) -> None:
    """Scores by distance."""
    width, height = figure.get_size_inches()
    left, bottom, wide, high = place
    axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
    axes.axhline(0, color="#bbbbbb", lw=0.6)
    axes.plot(range(len(scores)), [round(score, 3) for score in scores], color=ALLOWED, lw=1.2)
    axes.set(xlim=(0, len(scores) - 1), ylim=(-0.25, 1.05), xticks=range(0, len(scores), 16), yticks=[0, 0.5, 1])
    axes.set_xlabel("distance of query and key", fontsize=6.5, color=PALE, labelpad=2)
    axes.set_ylabel("score", fontsize=6.5, color=PALE, labelpad=2)
    axes.tick_params(length=2, labelsize=6, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)


def draw_legend(figure: "Figure", lead: str, keys: list[tuple[str, str]], dot: bool) -> None:
    """What the colours mean, along the foot."""
    width = figure.get_size_inches()[0]
    axes = figure.add_axes((0, 0, 1, FOOT / HEIGHT))
    axes.set(xlim=(0, width), ylim=(0, FOOT))
    axes.axis("off")
    axes.text(0.1, 0.15, lead, fontsize=6.5, va="center", color=PALE)
    x, y = 0.18 + 0.052 * len(lead), 0.15
    for fill, text in keys:
        axes.plot(x, y, "s", ms=7, mfc=fill, mec="#999999", mew=0.4)
        if fill == FORBIDDEN:
            axes.plot([x - 0.03, x + 0.03], [y - 0.03, y + 0.03], color="#a8a8a8", lw=0.6)
        axes.text(x + 0.09, y, text, fontsize=6.5, va="center", color=INK)
        x += 0.24 + 0.055 * len(text)
    if dot:
        axes.plot(x, y, "o", ms=3.2, mfc="white", mec=INK, mew=0.5)
        axes.text(x + 0.07, y, "the query's position", fontsize=6.5, va="center", color=INK)


def written(picture: Picture, kind: str = "svg") -> bytes:
    """A picture as a file holds it: the same bytes whenever the same matplotlib draws it."""
    import matplotlib

    buffer = BytesIO()
    with matplotlib.rc_context(STYLE):
        draw(picture).savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return slim(buffer.getvalue()) if kind == "svg" else buffer.getvalue()


def slim(svg: bytes) -> bytes:
    """The same picture with coordinates to a hundredth of a point, and without what nobody reads."""
    font = b"font-family: 'DejaVu Sans', sans-serif; "
    svg = svg.replace(font, b"").replace(b"*{", b"*{" + font, 1)
    svg = re.sub(rb"\n *(<!--.*?-->)?|<g id=\"\w+\"/>", b"\n", svg)
    svg = re.sub(rb' transform="rotate\(-0 [^"]*"|(?<=<g) id="[^"]*"', b"", svg)
    return re.sub(rb"\n+", b"\n", re.sub(rb"(\d\.\d\d)\d+", rb"\1", svg))


if __name__ == "__main__":
    for name, picture in PICTURES.items():
        (FOLDER / f"{name}.svg").write_bytes(written(picture))
