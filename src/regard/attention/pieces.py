"""A score matrix in pieces: some consecutive queries beside the keys that any of them may attend to.

Tiles that a mask leaves empty are in no piece, so kernels and maps skip them; tiles that it fills need no mask.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, product

import torch
from torch import Tensor

from regard.attention.masks import Mask
from regard.attention.tiles import TileGrid

HEIGHT = 64  # queries of a tile whose emptiness is asked for
WIDTH = 64  # keys of such a tile
BLOCK = 2**21  # pairs of a piece, at most, if it has more than one query

TALLEST = 256  # queries up to which pieces are joined
WASTE = 1.1  # times as many pairs at most that joining may make of them
Columns = slice | Tensor


@dataclass(frozen=True, eq=False)
class Piece:
    """Queries `rows` of one entry of the outer batch axes beside keys `columns`.

    Attributes:
        index: the entry.
        rows: queries that follow each other.
        columns: keys; a slice if they follow each other, else their indices.
        allowed: True at pairs that may attend, bool, broadcastable to `[*inner, r, c]`; None: all pairs.
        times: number of identical pieces along a diagonal, batched on a leading axis; piece i is offset by i · rows.
    """

    index: tuple[int, ...]
    rows: slice
    columns: Columns
    allowed: Tensor | None
    times: int = 1

    def of_queries(self, tensor: Tensor) -> Tensor:
        """The piece's part of queries or outputs `[*batch, T, d]`; a view."""
        if self.times == 1:
            return tensor[self.index][..., self.rows, :]
        return _steps(tensor[self.index], self.rows, self.times, self.rows.stop - self.rows.start)

    def of_rows(self, tensor: Tensor) -> Tensor:
        """The piece's part of row numbers `[*batch, T]`; a view."""
        return self.of_queries(tensor[..., None])[..., 0]

    def of_keys(self, tensor: Tensor) -> Tensor:
        """The piece's part of keys or values `[*batch, S, d]`."""
        if self.times == 1:
            return tensor[self.index][..., self.columns, :]
        assert isinstance(self.columns, slice)  # as all pieces that are alike
        return _steps(tensor[self.index], self.columns, self.times, self.rows.stop - self.rows.start)

    def add_to_keys(self, total: Tensor, part: Tensor) -> None:
        """Add a part as `of_keys` gives it to a whole."""
        if not isinstance(self.columns, slice):
            total[self.index].index_add_(-2, self.columns, part)
            return
        if self.times == 1:
            total[self.index][..., self.columns, :] += part
            return
        step = self.rows.stop - self.rows.start
        for start in range(self.columns.start, self.columns.stop, step):  # parts overlap, and these do not
            here = slice(start, min(start + step, self.columns.stop))
            of_part = slice(start - self.columns.start, here.stop - self.columns.start)
            _steps(total[self.index], here, self.times, step).add_(part[..., of_part, :])

    def positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The indices of its (first) queries and its (first) keys."""
        rows = torch.arange(self.rows.start, self.rows.stop, device=device)
        if isinstance(self.columns, Tensor):
            return rows, self.columns
        return rows, torch.arange(self.columns.start, self.columns.stop, device=device)


def _steps(tensor: Tensor, part: slice, times: int, step: int) -> Tensor:
    """`[*batch, n, d]` as `[times, *batch, len(part), d]`: each part `step` places after the one before it; a view."""
    first = tensor[..., part, :]
    return first.as_strided((times, *first.shape), (step * tensor.stride(-2), *first.stride()), first.storage_offset())


def pieces(
    mask: Mask | None,
    shape: tuple[int, ...],
    device: torch.device,
    *,
    outer: int = 0,
    pairs: int = BLOCK,
    skip: bool = True,
    alike: int = 0,
) -> Iterator[Piece]:
    """The pieces of a score matrix, each made when its turn comes.

    Args:
        mask: the pairs that may attend.
        shape: `(*batch, T, S)`.
        device: where the mask's tiles are made.
        outer: how many leading batch axes are taken one entry at a time.
        pairs: of a piece, at most.
        skip: leave out keys that none of the queries may attend to, and queries that may attend to no key.
        alike: take pieces that are alike, one after the other along a diagonal, as one (`Piece.times`), up to so many
            keys of all together.
    """
    for index in product(*map(range, shape[:outer])):
        own = mask.select(index, shape) if mask is not None and index else mask
        bands = _merged(_bands(own, shape[outer:], device, pairs, skip), pairs)
        diagonal = alike > 0 and own is not None and own.is_by_distance()
        for (rows, columns, full), times in _diagonals(bands, alike) if diagonal else ((band, 1) for band in bands):
            piece = Piece(index, rows, columns, None, times)
            if own is None or full:
                yield piece
            else:
                yield from _trimmed(piece, own.tile(*piece.positions(device), shape[outer:]), skip)


Band = tuple[slice, Columns, bool]


def _merged(bands: Iterable[Band], pairs: int) -> Iterator[Band]:
    """Neighbors joined while that adds few pairs that are in neither: torch's kernel is faster on more rows."""
    held: Band | None = None
    own = 0  # pairs of the bands that were joined
    for band in bands:
        rows, columns, _ = band
        if held is not None and isinstance(columns, slice) and isinstance(held[1], slice):
            joint = slice(min(held[1].start, columns.start), max(held[1].stop, columns.stop))
            together = (rows.stop - held[0].start) * (joint.stop - joint.start)
            alone = own + (rows.stop - rows.start) * (columns.stop - columns.start)
            tall = rows.stop - held[0].start > TALLEST
            if rows.start == held[0].stop and not tall and together <= min(pairs, WASTE * alone):
                held, own = (slice(held[0].start, rows.stop), joint, False), alone
                continue
        if held is not None:
            yield held
        held = band
        own = (rows.stop - rows.start) * (columns.stop - columns.start) if isinstance(columns, slice) else 0
    if held is not None:
        yield held


def _diagonals(bands: Iterator[Band], keys: int) -> Iterator[tuple[Band, int]]:
    """Bands of a mask that asks for distances alone, and how many in a row have the same distances."""
    for _, group in groupby(bands, _distances):
        alike = list(group)
        columns = alike[0][1]
        most = max(1, keys // (columns.stop - columns.start)) if isinstance(columns, slice) else 1
        for start in range(0, len(alike), most):
            yield alike[start], min(most, len(alike) - start)


def _distances(band: Band) -> tuple[int, ...]:
    """How many queries and keys a band has and how far they are apart; its place, if its keys have gaps."""
    rows, columns, _ = band
    if not isinstance(columns, slice):
        return (rows.start,)
    return rows.stop - rows.start, columns.stop - columns.start, columns.start - rows.start


def _bands(mask: Mask | None, shape: tuple[int, ...], device: torch.device, pairs: int, skip: bool) -> Iterator[Band]:
    """Queries that follow each other and see the same tiles of keys, and whether they see all of these."""
    t, s = shape[-2:]
    if mask is None or not skip or not t or not s:
        step = max(1, pairs // max(1, s))
        yield from ((slice(start, min(start + step, t)), slice(0, s), mask is None) for start in range(0, t, step))
        return
    grid = TileGrid.of(shape, HEIGHT, WIDTH, device)
    coverage = mask.coverage(grid)
    tiles = len(grid.rows) - 1, len(grid.columns) - 1
    some = coverage.some.expand(*coverage.some.shape[:-2], *tiles).reshape(-1, *tiles).any(0)
    collect = coverage.full.expand(*coverage.full.shape[:-2], *tiles).reshape(-1, *tiles).all(0)
    seen, full, edges = some.tolist(), (collect | ~some).all(-1).tolist(), grid.rows.tolist()
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
    rows, columns = piece.rows, piece.columns
    if not skip:
        yield Piece(piece.index, rows, columns, allowed, piece.times)
        return
    flat = allowed.flatten(0, -3).any(0) if allowed.ndim > 2 else allowed
    asks, asked = flat.any(1), flat.any(0)
    if not bool(asks.any()):
        return
    if piece.times == 1:
        rows, allowed = _ends(rows, allowed, asks, -2)
    if isinstance(columns, slice):
        columns, allowed = _ends(columns, allowed, asked, -1)
    yield Piece(piece.index, rows, columns, None if bool(allowed.all()) else allowed, piece.times)


def _ends(part: slice, allowed: Tensor, used: Tensor, axis: int) -> tuple[slice, Tensor]:
    """A slice from the first used place to the last, and the mask there; a mask that is one for all places stays."""
    if len(used) == 1 or (bool(used[0]) and bool(used[-1])):
        return part, allowed
    positions = used.nonzero()
    first, last = int(positions[0]), int(positions[-1]) + 1
    return slice(part.start + first, part.start + last), allowed.narrow(axis, first, last - first)


def empty_share(mask: Mask, shape: tuple[int, ...], device: torch.device) -> float:
    """The share of the score matrix that is left out of all pieces, by tiles."""
    some = mask.coverage(TileGrid.of(shape, HEIGHT, WIDTH, device)).some
    return 1 - float(some.float().mean()) if some.numel() else 0.0


def outer_axes(mask: Mask, shape: tuple[int, ...], device: torch.device) -> int:
    """How many leading batch axes a mask tells apart: their entries see different tiles."""
    some = mask.coverage(TileGrid.of(shape, HEIGHT, WIDTH, device)).some
    leading = [1] * (len(shape) - some.ndim) + list(some.shape[:-2])
    return max((axis + 1 for axis, n in enumerate(leading) if n > 1), default=0)
