"""A table of numbers as a notebook shows it."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import zip_longest

from torch import Tensor

from regard.errors import ShapeError

Cell = str | int | float | Tensor


class Table:
    """Columns and rows of text: HTML in a notebook, aligned columns in a terminal. `table` makes it.

    Attributes:
        columns: the names above the columns.
        rows: the cells, as they are shown.
        numeric: whether a column has numbers, which are aligned on the right.
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> None:
        self.columns, self.rows, self.numeric = list(columns), [list(row) for row in rows], list(numeric)

    def __repr__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, self.numeric, strict=True)
            ).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        """The table in the colors of the page around it, light or dark."""

        def line(cells: Sequence[str], tag: str, rule: str) -> str:
            return "".join(
                f'<{tag} style="text-align:{"right" if right else "left"};padding:.15em .7em;{rule}'
                f'font-variant-numeric:tabular-nums">{escape(cell)}</{tag}>'
                for cell, right in zip(cells, self.numeric, strict=True)
            )

        head = line(self.columns, "th", "border-bottom:1px solid currentColor;font-weight:600;")
        body = "".join(f"<tr>{line(row, 'td', '')}</tr>" for row in self.rows)
        return (
            '<table style="border-collapse:collapse;font-size:.9em;margin:.4em 0">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], form: str | Sequence[str] = ".3f") -> Table:
    """A table that a notebook shows as HTML.

    Args:
        columns: the names above the columns, "" for none.
        rows: one sequence of cells each: words, numbers, or tensors of one element. True and False become yes and no,
            integers have thousands separators, and NaN an empty cell.
        form: how floats are written (Python's format specification, as ".2f" or ".0%"): for all columns, or for each.

    Raises:
        ShapeError: a row has more or fewer cells than there are columns; as many forms as columns are needed, too.
    """
    forms = [form] * len(columns) if isinstance(form, str) else list(form)
    if len(forms) != len(columns):
        raise ShapeError(f"form has {len(forms)} entries for {len(columns)} columns: give one for each, or one string")
    given = [[one.item() if isinstance(one, Tensor) else one for one in row] for row in rows]
    for number, row in enumerate(given):
        if len(row) != len(columns):
            raise ShapeError(f"row {number} of the table has {len(row)} cells, expected one for each of the "
                             f"{len(columns)} columns")  # fmt: skip
    numeric = [any(isinstance(one, int | float) for one in column) for column in list(zip_longest(*given))] or [
        False
    ] * len(columns)
    return Table(columns, [[_shown(one, how) for one, how in zip(row, forms, strict=True)] for row in given], numeric)


def _shown(cell: str | int | float, form: str) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    return "" if cell != cell else f"{cell:{form}}".replace("-", "−", 1)
