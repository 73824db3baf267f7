"""A score matrix in pieces: some queries beside the keys that any of them may look at.

What a mask leaves empty is in no piece, so kernels and maps skip it; what it fills needs no mask.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from regard.attention.masks import Grid, Mask, chosen

HEIGHT = 128  # queries of a tile whose emptiness is asked for
WIDTH = 64  # keys of such a tile
BLOCK = 2**21  # pairs of a piece, at most, if it has more than one query

Columns = slice | Tensor


@dataclass(frozen=True, eq=False)
class Piece:
    """Queries `rows` of one entry of the outer batch axes beside keys `columns`.

    Attributes:
        index: the entry.
        rows: queries that follow each other.
        columns: keys; a slice if they follow each other, else their indices.
        allowed: who may look at whom, bool, broadcastable to `[*inner, r, c]`; None: everybody at everything.
    """

    index: tuple[int, ...]
    rows: slice
    columns: Columns
    allowed: Tensor | None

    @property
    def here(self) -> tuple[Any, ...]:
        """Where the piece's queries stand in `[*batch, T, …]`."""
        return (*self.index, ..., self.rows, slice(None))

    def of_keys(self, tensor: Tensor) -> Tensor:
        """The piece's part of keys or values `[*batch, S, d]`."""
        return tensor[self.index][..., self.columns, :]

    def add_to_keys(self, total: Tensor, part: Tensor) -> None:
        """Add a part as `of_keys` gives it to a whole."""
        if isinstance(self.columns, slice):
            total[self.index][..., self.columns, :] += part
        else:
            total[self.index].index_add_(-2, self.columns, part)

    def positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The indices of its queries and its keys."""
        rows = torch.arange(self.rows.start, self.rows.stop, device=device)
        if isinstance(self.columns, Tensor):
            return rows, self.columns
        return rows, torch.arange(self.columns.start, self.columns.stop, device=device)


def pieces(
    mask: Mask | None,
    shape: tuple[int, ...],
    device: torch.device,
    *,
    outer: int = 0,
    pairs: int = BLOCK,
    skip: bool = True,
) -> Iterator[Piece]:
    """The pieces of a score matrix, each made when its turn comes.

    Args:
        mask: who may look at whom.
        shape: `(*batch, T, S)`.
        device: where the mask's tiles are made.
        outer: how many leading batch axes are taken one entry at a time.
        pairs: of a piece, at most.
        skip: leave out keys that none of the queries may look at, and queries that may look nowhere.
    """
    for index in product(*map(range, shape[:outer])):
        own = None if mask is None else mask.select(index, shape) if index else mask
        for rows, columns, full in _bands(own, shape[outer:], device, pairs, skip):
            piece = Piece(index, rows, columns, None)
            if own is None or full:
                yield piece
                continue
            allowed = own.tile(*piece.positions(device), shape[outer:])
            yield from _trimmed(piece, allowed, skip)


def _bands(
    mask: Mask | None, shape: tuple[int, ...], device: torch.device, pairs: int, skip: bool
) -> Iterator[tuple[slice, Columns, bool]]:
    """Queries that follow each other and see the same tiles of keys, and whether they see all of these."""
    t, s = shape[-2:]
    if mask is None or not skip or not t or not s:
        step = max(1, pairs // max(1, s))
        yield from ((slice(start, min(start + step, t)), slice(0, s), mask is None) for start in range(0, t, step))
        return
    grid = Grid.of(shape, HEIGHT, WIDTH, device)
    coverage = mask.coverage(grid)
    tiles = len(grid.rows) - 1, len(grid.columns) - 1
    some = coverage.some.expand(*coverage.some.shape[:-2], *tiles).reshape(-1, *tiles).any(0)
    every = coverage.every.expand(*coverage.every.shape[:-2], *tiles).reshape(-1, *tiles).all(0)
    seen, full, edges = some.tolist(), (every | ~some).all(-1).tolist(), grid.rows.tolist()
    start = 0
    for r in range(1, len(seen) + 1):
        if r < len(seen) and seen[r] == seen[start] and full[r] == full[start]:
            continue
        if any(seen[start]):
            columns = _columns(seen[start], s, device)
            step = max(1, pairs // (sum(seen[start]) * WIDTH))
            for first in range(edges[start], edges[r], step):
                yield slice(first, min(first + step, edges[r])), columns, full[start]
        start = r


def _columns(seen: list[bool], s: int, device: torch.device) -> Columns:
    """The keys of the tiles that are seen."""
    tiles = [c for c, some in enumerate(seen) if some]
    first, last = tiles[0] * WIDTH, min(s, (tiles[-1] + 1) * WIDTH)
    if len(tiles) == tiles[-1] - tiles[0] + 1:
        return slice(first, last)
    starts = torch.tensor(tiles, device=device)[:, None] * WIDTH
    keys = (starts + torch.arange(WIDTH, device=device)).flatten()
    return keys[keys < s]


def _trimmed(piece: Piece, allowed: Tensor, skip: bool) -> Iterator[Piece]:
    """The piece without queries and keys at its ends that look, or are looked at, nowhere."""
    flat = allowed.flatten(0, -3).any(0) if allowed.ndim > 2 else allowed
    rows, columns = piece.rows, piece.columns
    if skip:
        asks, asked = flat.any(1), flat.any(0)
        if not bool(asks.any()):
            return
        rows, allowed = _ends(rows, allowed, asks, -2)
        if isinstance(columns, slice):
            columns, allowed = _ends(columns, allowed, asked, -1)
    yield Piece(piece.index, rows, columns, None if bool(allowed.all()) else allowed)


def _ends(part: slice, allowed: Tensor, used: Tensor, axis: int) -> tuple[slice, Tensor]:
    """A slice from the first used place to the last, and the mask there; a mask that is one for all places stays."""
    if len(used) == 1 or (bool(used[0]) and bool(used[-1])):
        return part, allowed
    places = used.nonzero()
    first, last = int(places[0]), int(places[-1]) + 1
    return slice(part.start + first, part.start + last), allowed.narrow(axis, first, last - first)


def empty_share(mask: Mask, shape: tuple[int, ...], device: torch.device) -> float:
    """The share of the score matrix that is left out of all pieces, by tiles."""
    some = mask.coverage(Grid.of(shape, HEIGHT, WIDTH, device)).some
    return 1 - float(some.float().mean()) if some.numel() else 0.0


def outer_axes(mask: Mask, shape: tuple[int, ...], device: torch.device) -> int:
    """How many leading batch axes a mask tells apart: their entries see different tiles."""
    some = mask.coverage(Grid.of(shape, HEIGHT, WIDTH, device)).some
    leading = [1] * (len(shape) - some.ndim) + list(some.shape[:-2])
    return max((axis + 1 for axis, n in enumerate(leading) if n > 1), default=0)


__all__ = ["Piece", "chosen", "empty_share", "outer_axes", "pieces"]
