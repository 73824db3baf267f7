"""The heatmap in a terminal: one coloured cell a weight."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from regard.errors import harmless

LIGHT, DARK = (247, 251, 255), (8, 48, 107)


def grid(weights: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> Table:
    """A table of coloured cells: output words down, source words across; the largest of a row is bold."""
    table = Table(box=None, pad_edge=False, padding=(0, 0), show_header=True, header_style="bold")
    table.add_column("", justify="right", no_wrap=True)
    for name in columns:
        table.add_column(Text(f" {harmless(name)} "), justify="center", no_wrap=True, min_width=6)
    for name, row in zip(rows, weights, strict=True):
        best = max(row, default=0.0)
        table.add_row(Text(f"{harmless(name)} ", style="bold"), *(_cell(weight, weight == best > 0) for weight in row))
    return table


def _cell(weight: float, best: bool) -> Text:
    share = min(1.0, max(0.0, weight))
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(LIGHT, DARK, strict=True))
    ink = "white" if share > 0.5 else "black"
    return Text(
        f" {weight:4.2f} ", style=f"{'bold ' if best else ''}{ink} on rgb({red},{green},{blue})", justify="center"
    )
