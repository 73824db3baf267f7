"""Small pictures of maps in a table, as HTML: what a notebook shows of an observation."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from math import prod
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regard.figures.style import STEPS, THEMES, round_up, scale, shorten

CELLS = 48  # of a small picture, to a side
SIDE = 56  # screen points of one
HEADS, SITES = 12, 24  # that have pictures
WORK = 2**27  # weights of a map that are computed for its pictures, at most
CELL = "padding:3px 14px 3px 0;text-align:left;vertical-align:middle;white-space:nowrap"


@runtime_checkable
class Drawable(Protocol):
    """What is drawn of a map."""

    shape: torch.Size

    def pool(self, rows: int, columns: int, reduce: str = "max") -> Tensor:
        """The largest weights of cells."""
        ...


def sites_table(maps: Mapping[str, Sequence[Drawable]], heading: str) -> str:
    """A table with a line for each site: its name, how many maps, their shape, and its first map by head.

    All pictures share one scale from 0; a map of more than 2²⁷ weights has none, as computing it takes long.

    Args:
        maps: by site.
        heading: above the table.
    """
    pools = {
        site: some[0].pool(CELLS, CELLS).detach().float().cpu().flatten(0, -3)[:HEADS]
        if len(some[0].shape) > 2
        else some[0].pool(CELLS, CELLS).detach().float().cpu()[None]
        for site, some in list(maps.items())[:SITES]
        if 0 < prod(some[0].shape) <= WORK
    }
    largest = max([0.0, *(float(one.nan_to_num().max()) for one in pools.values())])
    top = 1.0 if largest > 0.2 or largest <= 0 else round_up(largest)
    head = "".join(f'<th style="{CELL}">{name}</th>' for name in ("site", "maps", "shape", "the first map, by head"))
    lines = []
    for site, some in maps.items():
        shape = " × ".join(map(str, some[0].shape))
        pictures = "".join(_picture(one, top) for one in pools.get(site, []))
        cells = f"<code>{escape(site)}</code>", str(len(some)), shape, pictures
        lines.append("<tr>" + "".join(f'<td style="{CELL}">{cell}</td>' for cell in cells) + "</tr>")
    note = (
        f"color: attention weight from 0 to {shorten(top)}, on its square root; "
        f"seen[{escape(next(iter(maps), 'site'))!r}][0].plot() draws one with names and a scale"
    )
    return (
        f'<div><b>{escape(heading)}</b><table style="border-collapse:collapse"><tr>{head}</tr>{"".join(lines)}</table>'
        f'<div style="opacity:.65;font-size:.85em">{note}</div></div>'
    )


def _picture(weights: Tensor, top: float) -> str:
    """One head as an image element."""
    share = (weights.nan_to_num() / top).clamp(0, 1).sqrt()
    colours = (scale(THEMES["light"].weights) * 255).round().astype(np.uint8)
    points = colours[(share * (STEPS - 1)).round().long().numpy()]
    buffer = BytesIO()
    Image.fromarray(points).save(buffer, format="png")
    coded = b64encode(buffer.getvalue()).decode()
    style = f"width:{SIDE}px;height:{SIDE}px;image-rendering:pixelated;border:1px solid #d3d8df;margin:0 3px 0 0"
    return f'<img alt="" style="{style}" src="data:image/png;base64,{coded}">'
