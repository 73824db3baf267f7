"""What of a map can be drawn: some of its heads and rows, pooled where they are many."""

from collections.abc import Sequence
from itertools import islice, product
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.errors import ShapeError

if TYPE_CHECKING:
    from regard.attention.maps.map import AttentionMap

LEGIBLE = 128  # queries or keys that are drawn one by one, with names
CELLS = 256  # of a larger map, to a side
Rows = slice | Sequence[int] | Tensor


def draw_map(
    map: "AttentionMap", path: str | Path | None = None, rows: Rows | None = None,
    heads: int | Sequence[int] | None = None, title: str | None = None, theme: str = "light",
) -> Any:  # fmt: skip
    """The figure of `AttentionMap.plot`."""
    from regard.figures.heatmap import PANELS, draw_heatmaps  # matplotlib is imported when something is drawn

    *leading, queries, keys = map.shape
    indices = [_chosen_heads(map, heads) if axis == len(leading) - 1 else list(range(n)) for axis, n in
              enumerate(leading)]  # fmt: skip
    if heads is not None and not leading:
        raise ShapeError(f"heads={heads!r}: this map has no heads: its shape is {list(map.shape)}")
    entries = list(islice(product(*indices), PANELS))
    count = prod(len(one) for one in indices)
    order = None if rows is None else _chosen_rows(map, rows)
    drawn = queries if order is None else len(order)
    large = max(drawn, keys) > LEGIBLE
    cell = (ceil(drawn / CELLS), ceil(keys / CELLS)) if large else (1, 1)
    whole = heads is None and count <= PANELS
    parts = [map] if whole else [map.select(*entry) for entry in entries]
    weights = torch.stack([_weights(part, order, large, cell) for part in parts])
    weights = weights.flatten(0, -3) if entries else weights[:0, None]
    names = [str(i) for i in order] if order is not None else []
    tokens = map.query_tokens
    if tokens:
        names = list(tokens) if order is None else [tokens[i] for i in order]
    across = leading[-1] if whole and len(leading) > 1 and prod(leading[:-1]) > 1 and leading[-1] <= 8 else 0
    return draw_heatmaps(
        weights, names, map.key_tokens or [], names=[_panel(map, one) for one in entries] if leading else [],
        title=map.title or map.site if title is None else title, note=_note(map, drawn, len(entries), count),
        sides=("query ↓", "key →"), cell=cell, across=across, theme=theme, path=path,
    )  # fmt: skip


def _weights(map: "AttentionMap", order: list[int] | None, large: bool, cell: tuple[int, int]) -> Tensor:
    """`[*batch, rows, columns]`: every weight, or the largest of every cell."""
    if order is None:
        return (map.pool(CELLS, CELLS) if large else map.full()).detach()
    if not large:
        return map.tile(order, slice(None)).detach()
    step = cell[0] * max(1, CELLS // cell[0])
    found = [_pooled(map.tile(order[n : n + step], slice(None)).detach(), cell) for n in range(0, len(order), step)]
    return torch.cat(found, -2)


def _pooled(weights: Tensor, cell: tuple[int, int]) -> Tensor:
    """The largest weight of every cell; the last ones may be short."""
    rows, columns = (-n % size for n, size in zip(weights.shape[-2:], cell, strict=True))
    padded = pad(weights, (0, columns, 0, rows))
    pooled: Tensor = padded.unflatten(-1, (-1, cell[1])).amax(-1).unflatten(-2, (-1, cell[0])).amax(-2)
    return pooled


def _chosen_heads(map: "AttentionMap", heads: int | Sequence[int] | None) -> list[int]:
    count = map.shape[-3]
    if heads is None:
        return list(range(count))
    chosen = [heads] if isinstance(heads, int) else list(heads)
    if not chosen or any(not -count <= head < count for head in chosen):
        raise ShapeError(f"heads={heads!r}: this map has heads 0 to {count - 1}")
    return [head % count for head in chosen]


def _chosen_rows(map: "AttentionMap", rows: Rows) -> list[int]:
    size = map.shape[-2]
    given = rows if isinstance(rows, slice) else torch.as_tensor(rows)
    if isinstance(given, Tensor) and given.dtype == torch.bool:  # which of all rows
        if given.shape != (size,):
            raise ShapeError(f"rows={rows!r}: expected {size} bools, one for each row; got {list(given.shape)}")
        given = given.nonzero()[:, 0]
    chosen = list(range(size))[given] if isinstance(given, slice) else [int(row) for row in given]
    if not chosen or any(not -size <= row < size for row in chosen):
        raise ShapeError(f"rows={rows!r}: this map has rows 0 to {size - 1}")
    return [row % size for row in chosen]


def _panel(map: "AttentionMap", entry: tuple[int, ...]) -> str:
    """Which entry of the leading axes a panel is: "sequence 1, head 3", or its index where an axis is not known."""
    if not map.has_heads:
        return f"[{', '.join(str(n) for n in entry)}]"
    *outer, head = entry
    sizes = map.shape[: len(outer)]
    if all(size == 1 for size in sizes):
        return f"head {head}"
    return f"sequence {', '.join(str(n) for n in outer)} · head {head}"


def _note(map: "AttentionMap", rows: int, shown: int, count: int) -> str:
    queries, keys = map.shape[-2:]
    found = [map.site] if map.site and map.title else []
    found.append(f"{queries:,} queries × {keys:,} keys" if rows == queries else f"{rows:,} of {queries:,} queries")
    if shown < count:
        found.append(f"the first {shown} of {count:,} panels: select(…) and heads= choose others")
    return " · ".join(found)
