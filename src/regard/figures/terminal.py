"""The heatmap in a terminal: one colored cell a weight, as many columns side by side as there is room for."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from regard.errors import harmless
from regard.figures.style import THEMES, colour, ink_on

CELL = 6  # characters of a number and its margins
LABEL = 24  # characters of a row's name at most, where there is little room
Column = TypeVar("Column")


def grid(
    weights: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], width: int = 80
) -> RenderableType:
    """Colored cells: output words down, source words across; the largest of a row is bold.

    Args:
        weights: one row per name in `rows`, one column per name in `columns`.
        rows, columns: names.
        width: of the terminal, in characters; columns for which there is no room follow below, under the rows' names.
    """
    rows, columns = [harmless(name) for name in rows], [harmless(name) for name in columns]
    named = fitted(rows, max(4, min(width // 3, LABEL)) if width < 100 else width // 3)
    left = max((cell_len(name) for name in named), default=0) + 1
    heads = fitted(columns, max(CELL, width - left) - 2)
    parts = blocks(range(len(columns)), [max(CELL, cell_len(head) + 2) for head in heads], width - left)
    tables: list[RenderableType] = []
    for part in parts or [[]]:
        table = Table(box=None, pad_edge=False, padding=(0, 0), show_header=True, header_style="bold")
        table.add_column("", justify="right", no_wrap=True)
        for n in part:
            table.add_column(Text(f" {heads[n]} "), justify="center", no_wrap=True, min_width=CELL)
        for name, row in zip(named, weights, strict=True):
            best = max(row, default=0.0)
            cells = [row[n] for n in part]
            table.add_row(Text(f"{name} ", style="bold"), *(_cell(weight, weight == best > 0) for weight in cells))
        tables += [table] if not tables else [Text(), table]
    return Group(*tables)


def blocks(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[list[Column]]:
    """Columns in groups that fit into a width, in their order; a group has one at least."""
    found: list[list[Column]] = []
    used = 0
    for column, width in zip(columns, widths, strict=True):
        if not found or used + width > room:
            found.append([])
            used = 0
        found[-1].append(column)
        used += width
    return found


def fitted(names: Sequence[str], width: int) -> list[str]:
    """Names of so many characters at most; what was cut ends in an ellipsis."""

    def each() -> Iterator[str]:
        for name in names:
            yield name if cell_len(name) <= width else set_cell_size(name, max(1, width - 1)).rstrip() + "…"

    return list(each())


def _cell(weight: float, best: bool) -> Text:
    rgb = colour(weight, THEMES["light"].weights)
    red, green, blue = (round(255 * part) for part in rgb)
    ink = "white" if ink_on(rgb) == "#ffffff" else "black"
    return Text(
        f" {weight:4.2f} ", style=f"{'bold ' if best else ''}{ink} on rgb({red},{green},{blue})", justify="center"
    )
