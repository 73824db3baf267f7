"""A small map as SVG by hand, for where a page's scripts are off: no plotting library is imported for it."""

from collections.abc import Sequence
from html import escape
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.figures.style import as_hex, colour, theme_of

CELL, LETTER, BOLD = 22, 7.4, 8.6  # sizes in units of the picture
LONGEST = 18  # characters of a name


def still(weights: NDArray[Any], rows: Sequence[str], columns: Sequence[str], title: str) -> str:
    """A map `[rows, columns]` as an SVG picture whose names are text.

    Args:
        weights: of at most some dozens of rows and columns.
        rows, columns: names.
        title: above it.
    """
    theme = theme_of("light")
    numbers = weights[np.isfinite(weights)]
    most = float(numbers.max()) if numbers.size else 0.0
    left = min(LONGEST, max((len(name) for name in rows), default=1)) * LETTER + 14
    top = min(LONGEST, max((len(name) for name in columns), default=1)) * LETTER * 0.72 + 40
    said = _text(title, 70)
    width = max(left + CELL * len(columns) + 70, min(70, len(title)) * BOLD + 28)
    height = top + CELL * len(rows) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif" font-size="13" fill="{theme.ink}">'
        f'<title>{_text(title, 200)}</title><rect width="100%" height="100%" fill="{theme.paper}"/>'
        f'<text x="14" y="20" font-weight="600">{said}</text>'
    ]
    for c, name in enumerate(columns):
        at = f"translate({left + (c + 0.6) * CELL:.1f} {top - 6:.1f}) rotate(-42)"
        parts.append(f'<text transform="{at}">{_text(name)}</text>')
    for r, name in enumerate(rows):
        y = top + r * CELL
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 0.68 * CELL:.1f}" text-anchor="end">{_text(name)}</text>')
        for c in range(len(columns)):
            weight = float(weights[r, c])
            known = theme.line if isnan(weight) else as_hex(colour(weight / most if most > 0 else 0.0, theme.weights))
            parts.append(
                f'<rect x="{left + c * CELL:.1f}" y="{y:.1f}" width="{CELL - 1}" height="{CELL - 1}" fill="{known}"/>'
            )
    return "".join([*parts, "</svg>"])


def _text(name: str, most: int = LONGEST) -> str:
    """A name that XML takes, shortened."""
    plain = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return escape(plain if len(plain) <= most else plain[: most - 1] + "…")
