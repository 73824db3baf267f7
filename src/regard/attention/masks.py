"""Masks: which query may attend to which key. True means *may attend*, everywhere.

A mask is a small value. It answers for any tile of the score matrix and is combined with
`&`, `|` and `~`. It also says of every tile of a grid whether it is empty or full (`coverage`), without looking
at its pairs, so that kernels skip. Masks that speak of places follow one rule: query i stands at i + S - T
(`offset=None`: the last query sees the last key), or at i + offset.
"""

from dataclasses import dataclass, replace
from math import prod
from operator import and_, index, or_
from typing import Any

import torch
from torch import Tensor

from regard.arguments import check_arguments
from regard.attention.tiles import (
    Coverage,
    Index,
    Offset,
    Positions,
    Tile,
    TileGrid,
    along_batch,
    chosen,
    cut,
    query_positions,
)
from regard.attention.tracing import is_traced
from regard.errors import ChoiceError, ShapeError, shown
from regard.shapes import broadcast_to_scores, check_tensors

BAND = 2**22  # pairs of a band of rows, where whole rows are asked for


MOST = 2**62  # places: numbers of keys are int64


class Mask:
    """A relation between queries and keys; the base of all masks."""

    def is_by_key(self) -> bool:
        """Whether it is the same for every query."""
        return False

    def is_by_distance(self) -> bool:
        """Whether it asks only how far the key is from the query: tiles along a diagonal are all the same."""
        return False

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:
        """Whether query `rows[i]` may attend to key `columns[j]`.

        Args:
            rows: indices of queries `[t]`.
            columns: indices of keys `[s]`.
            shape: the whole score matrix, `(*batch, T, S)`.

        Returns:
            bool, broadcastable to `[*batch, t, s]`.
        """
        raise NotImplementedError

    def full(self, shape: tuple[int, ...], device: torch.device) -> Tile:
        """The mask for every query and key, broadcastable to `shape`."""
        rows = torch.arange(shape[-2], device=device)
        return self.tile(rows, torch.arange(shape[-1], device=device), shape)

    def of_keys(self, shape: tuple[int, ...], device: torch.device) -> Tile:
        """Which keys may be looked at, `[*batch, S, 1]`, broadcastable: of a mask that is the same for every query."""
        first, columns = torch.zeros(1, dtype=torch.long, device=device), torch.arange(shape[-1], device=device)
        return self.tile(first, columns, (*shape[:-2], max(1, shape[-2]), shape[-1])).transpose(-2, -1)

    def seen_by(self, flags: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Which queries may attend to any key, and which to any key whose flag is set, decided by shapes alone.

        Args:
            flags: of the keys, bool `[..., S]`, broadcastable to `[*batch, S]`.
            shape: the whole score matrix, `(*batch, T, S)`.

        Returns:
            two bools, each broadcastable to `[*batch, T]`.
        """
        if self.is_by_key():
            allowed = self.of_keys(shape, flags.device).squeeze(-1)
            return allowed.any(-1, keepdim=True), (allowed & flags).any(-1, keepdim=True)
        if is_traced(flags):
            return rows_of(self.full(shape, flags.device), flags, shape)
        columns = torch.arange(shape[-1], device=flags.device)
        step = max(1, BAND // max(1, prod(shape[:-2]) * shape[-1]))
        bands = torch.arange(shape[-2], device=flags.device).split(step)
        found = [
            rows_of(self.tile(rows, columns, shape), flags, (*shape[:-2], rows.shape[0], shape[-1])) for rows in bands
        ]
        alive, reached = zip(*found, strict=True)
        return torch.cat(alive, -1), torch.cat(reached, -1)

    def coverage(self, grid: TileGrid) -> Coverage:
        """Which tiles are empty and which are full, `[*batch, R, C]`, broadcastable; unless a mask knows, neither."""
        sizes = len(grid.rows) - 1, len(grid.columns) - 1
        nothing = torch.zeros(sizes, dtype=torch.bool, device=grid.rows.device)
        return Coverage(~nothing, nothing)

    def select(self, index: Index, shape: tuple[int, ...]) -> "Mask":
        """The same for some of the batch axes of scores `shape`."""
        return ChosenMask(self, shape, index)

    def part(self, first: tuple[int, int], shape: tuple[int, ...]) -> "Mask":
        """The same for the queries from `first[0]` and the keys from `first[1]` of scores `shape`, counted from there.

        How many there are is left to the shapes that the part is asked about.
        """
        return PartMask(self, first, (shape[-2], shape[-1]))

    def __and__(self, other: "MaskLike") -> "Mask":
        return And(self, as_mask(other))

    def __or__(self, other: "MaskLike") -> "Mask":
        return Or(self, as_mask(other))

    def __rand__(self, other: "MaskLike") -> "Mask":
        return And(as_mask(other), self)

    def __ror__(self, other: "MaskLike") -> "Mask":
        return Or(as_mask(other), self)

    def __invert__(self) -> "Mask":
        return Not(self)


@dataclass(frozen=True, eq=False)
class Combined(Mask):
    """Two masks as one; `join` takes their tiles, or what they say of a grid."""

    left: Mask
    right: Mask

    @staticmethod
    def join(left: Any, right: Any) -> Any:
        """Both as one."""
        raise NotImplementedError

    def full(self, shape: tuple[int, ...], device: torch.device) -> Tile:
        whole: Tile = self.join(self.left.full(shape, device), self.right.full(shape, device))
        return whole

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:
        tile: Tile = self.join(self.left.tile(rows, columns, shape), self.right.tile(rows, columns, shape))
        return tile

    def coverage(self, grid: TileGrid) -> Coverage:
        coverage: Coverage = self.join(self.left.coverage(grid), self.right.coverage(grid))
        return coverage

    def is_by_key(self) -> bool:
        return self.left.is_by_key() and self.right.is_by_key()

    def is_by_distance(self) -> bool:
        return self.left.is_by_distance() and self.right.is_by_distance()

    def select(self, index: Index, shape: tuple[int, ...]) -> Mask:
        return type(self)(self.left.select(index, shape), self.right.select(index, shape))


class And(Combined):
    """Both allow it."""

    join = staticmethod(and_)  # type: ignore[assignment]


class Or(Combined):
    """At least one allows it."""

    join = staticmethod(or_)  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Not(Mask):
    """The opposite."""

    mask: Mask

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:
        return ~self.mask.tile(rows, columns, shape)

    def coverage(self, grid: TileGrid) -> Coverage:
        return ~self.mask.coverage(grid)

    def is_by_key(self) -> bool:
        return self.mask.is_by_key()

    def is_by_distance(self) -> bool:
        return self.mask.is_by_distance()

    def select(self, index: Index, shape: tuple[int, ...]) -> Mask:
        return Not(self.mask.select(index, shape))


@dataclass(frozen=True, eq=False)
class Causal(Mask):
    """Key j stands at or before query i's place."""

    offset: Offset = None

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:
        return columns <= query_positions(rows, shape, self.offset)

    def coverage(self, grid: TileGrid) -> Coverage:
        top, bottom, first, last = grid.ends()
        return Coverage(
            first <= query_positions(bottom, grid.shape, self.offset),
            last <= query_positions(top, grid.shape, self.offset),
        )

    def is_by_distance(self) -> bool:
        return not _differs(self.offset)

    def select(self, index: Index, shape: tuple[int, ...]) -> Mask:
        return _with_offset(self, index, shape)

    def part(self, first: tuple[int, int], shape: tuple[int, ...]) -> Mask:
        return _moved(self, first, shape)

    def is_triangle(self, shape: tuple[int, ...]) -> bool:
        """Whether this is the square lower triangle that torch calls `is_causal`; False where sizes are symbols."""
        offset = shape[-1] - shape[-2] if self.offset is None else self.offset
        return isinstance(offset, int) and offset == 0

    def seen_by(self, flags: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if isinstance(shape[-1], int) and not shape[-1]:
            return super().seen_by(flags, shape)
        last = query_positions(torch.arange(shape[-2], device=flags.device), shape, self.offset).squeeze(-1)
        columns = torch.arange(shape[-1], device=flags.device)
        first = torch.where(flags, columns, shape[-1]).amin(-1, keepdim=True)  # the first key whose flag is set
        return last >= 0, (first <= last) & (first < shape[-1])


@dataclass(frozen=True, eq=False)
class Padding(Mask):
    """Keys below each batch entry's length, asked by queries below its query length."""

    lengths: Tensor
    query_lengths: Tensor | None = None

    def is_by_key(self) -> bool:
        return self.query_lengths is None

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:
        allowed = columns < along_batch(self.lengths, shape, "padding lengths", columns.device)
        if self.query_lengths is None:
            return allowed
        asking = rows[:, None] < along_batch(self.query_lengths, shape, "padding query_lengths", rows.device)
        return allowed & asking

    def coverage(self, grid: TileGrid) -> Coverage:
        top, bottom, first, last = grid.ends()
        lengths = along_batch(self.lengths, grid.shape, "padding lengths", top.device)
        keys = Coverage(first < lengths, last < lengths)
        if self.query_lengths is None:
            return keys
        lengths = along_batch(self.query_lengths, grid.shape, "padding query_lengths", top.device)
        return keys & Coverage(top[:, None] < lengths, bottom[:, None] < lengths)

    def select(self, index: Index, shape: tuple[int, ...]) -> Mask:
        parts = [
            None
            if part is None
            else chosen(along_batch(part, shape, "padding lengths", part.device), index, shape)[..., 0, 0]
            for part in (self.lengths, self.query_lengths)
        ]
        return Padding(parts[0], parts[1])  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """Keys 0 … n-1."""

    n: int

    def is_by_key(self) -> bool:
        return True

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:  # noqa: ARG002
        return (columns < self.n).expand(rows.shape[0], columns.shape[0])

    def coverage(self, grid: TileGrid) -> Coverage:
        top, _, first, last = grid.ends()
        return Coverage(*((ends < self.n).expand(len(top), len(first)) for ends in (first, last)))

    def select(self, index: Index, shape: tuple[int, ...]) -> Mask:  # noqa: ARG002
        return self


@dataclass(frozen=True, eq=False)
class Window(Mask):
    """Keys from `left` before query i's place to `right` after it."""

    left: int
    right: int
    offset: Offset = None

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:
        distance = columns - query_positions(rows, shape, self.offset)
        return (distance >= -self.left) & (distance <= self.right)

    def coverage(self, grid: TileGrid) -> Coverage:
        top, bottom, first, last = grid.ends()
        nearest = first - query_positions(bottom, grid.shape, self.offset)  # of all distances in the tile, the smallest
        farthest = last - query_positions(top, grid.shape, self.offset)
        return Coverage(
            (farthest >= -self.left) & (nearest <= self.right), (nearest >= -self.left) & (farthest <= self.right)
        )

    def is_by_distance(self) -> bool:
        return not _differs(self.offset)

    def select(self, index: Index, shape: tuple[int, ...]) -> Mask:
        return _with_offset(self, index, shape)

    def part(self, first: tuple[int, int], shape: tuple[int, ...]) -> Mask:
        return _moved(self, first, shape)


@dataclass(frozen=True, eq=False)
class Documents(Mask):
    """Queries and keys with the same number; -1 neither attends nor is attended to."""

    query_ids: Tensor
    key_ids: Tensor

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:
        asking = self._of(self.query_ids, "query_ids", shape, shape[-2], rows.device)[..., rows, None]
        asked = self._of(self.key_ids, "key_ids", shape, shape[-1], rows.device)[..., None, columns]
        return (asking == asked) & (asking >= 0)

    def coverage(self, grid: TileGrid) -> Coverage:
        device = grid.rows.device
        asking = self._of(self.query_ids, "query_ids", grid.shape, grid.shape[-2], device)
        asked = self._of(self.key_ids, "key_ids", grid.shape, grid.shape[-1], device)
        low, high = (part[..., :, None] for part in _extremes(asking, grid.rows))
        lowest, highest = (part[..., None, :] for part in _extremes(asked, grid.columns))
        meet = (low <= highest) & (lowest <= high) & (high >= 0) & (highest >= 0)
        return Coverage(meet, (low == high) & (lowest == highest) & (low == lowest) & (low >= 0))

    def _of(self, ids: Tensor, name: str, shape: tuple[int, ...], size: int, device: torch.device) -> Tensor:
        """The numbers `[*leading, 1 …, n]`, aligned with the leading batch axes."""
        if not ids.ndim or ids.shape[-1] != size:
            raise ShapeError(f"documents {name} have shape {list(ids.shape)} and the scores {list(shape)}: give {size}")
        leading = ids.shape[:-1]
        along_batch(ids.new_zeros(leading), shape, f"documents {name}", device)  # refuses what does not fit
        return ids.to(device).reshape(*leading, *[1] * (len(shape) - 2 - len(leading)), size)


@dataclass(frozen=True, eq=False)
class Blocks(Mask):
    """Squares of `size` × `size` that a layout allows."""

    layout: Tensor
    size: int

    def _check(self, shape: tuple[int, ...]) -> None:
        """Refuse a layout of another number of blocks than scores of this shape have."""
        wanted = [-(-n // self.size) for n in shape[-2:]]
        if list(self.layout.shape[-2:]) != wanted:
            raise ShapeError(
                f"blocks of {self.size} need a layout [..., {wanted[0]}, {wanted[1]}] for scores {list(shape)}; "
                f"got {list(self.layout.shape)}"
            )
        broadcast_to_scores(self.layout[..., :1, :1], shape, "blocks layout")

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:
        self._check(shape)
        return self.layout.to(rows.device)[..., (rows // self.size)[:, None], columns // self.size]

    def coverage(self, grid: TileGrid) -> Coverage:
        self._check(grid.shape)
        top, bottom, first, last = (ends // self.size for ends in grid.ends())
        return _reduced(self.layout.to(grid.rows.device), _slices(top, bottom), _slices(first, last))


@dataclass(frozen=True, eq=False)
class Spans(Mask):
    """Keys start_i … end_i - 1 for query i: any mask whose rows have no gaps, in O(T).

    Attributes:
        start, end: int, broadcastable to `[*batch, T]`.
    """

    start: Tensor
    end: Tensor

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:
        start, end = (
            part.to(rows.device).expand(*part.shape[:-1], shape[-2])[..., rows, None] for part in (self.start, self.end)
        )
        return (columns >= start) & (columns < end)

    def coverage(self, grid: TileGrid) -> Coverage:
        _, _, first, last = grid.ends()
        starts, ends = (
            [extreme[..., None] for extreme in _extremes(part.expand(*part.shape[:-1], grid.shape[-2]), grid.rows)]
            for part in (self.start, self.end)
        )
        meet = (first < ends[1]) & (last >= starts[0]) & (starts[0] < ends[1])
        return Coverage(meet, (first >= starts[1]) & (last < ends[0]))


@dataclass(frozen=True, eq=False)
class Allow(Mask):
    """Exactly what a bool tensor says, broadcast from the right as torch does."""

    tensor: Tensor

    def is_by_key(self) -> bool:
        return self.tensor.ndim < 2 or self.tensor.shape[-2] == 1

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:
        whole = broadcast_to_scores(self.tensor, shape, "mask")
        return cut(whole.to(rows.device), rows, columns)

    def full(self, shape: tuple[int, ...], device: torch.device) -> Tile:
        return broadcast_to_scores(self.tensor, shape, "mask").to(device)

    def coverage(self, grid: TileGrid) -> Coverage:
        whole = broadcast_to_scores(self.tensor, grid.shape, "mask").to(grid.rows.device)
        top, bottom, first, last = grid.ends()
        return _reduced(whole, _slices(top, bottom), _slices(first, last))

    def select(self, index: Index, shape: tuple[int, ...]) -> Mask:
        whole = broadcast_to_scores(self.tensor, shape, "mask")
        return Allow(chosen(whole, index, shape))


@dataclass(frozen=True, eq=False)
class ChosenMask(Mask):
    """A mask of scores `whole` for some of their batch axes."""

    mask: Mask
    whole: tuple[int, ...]
    index: tuple[int | slice, ...]

    def is_by_key(self) -> bool:
        return self.mask.is_by_key()

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:  # noqa: ARG002
        return chosen(self.mask.tile(rows, columns, self.whole), self.index, self.whole)

    def coverage(self, grid: TileGrid) -> Coverage:
        whole = self.mask.coverage(TileGrid(grid.rows, grid.columns, self.whole))
        return Coverage(*(chosen(part, self.index, self.whole) for part in (whole.some, whole.full)))


@dataclass(frozen=True, eq=False)
class PartMask(Mask):
    """A mask of T queries and S keys for those from `first` on: a tile that is counted from its own corner.

    Attributes:
        first: the first query and the first key of the part.
        size: T and S of the whole; its batch axes are the part's.
    """

    mask: Mask
    first: tuple[int, int]
    size: tuple[int, int]

    def is_by_key(self) -> bool:
        return self.mask.is_by_key()

    def is_by_distance(self) -> bool:
        return self.mask.is_by_distance()

    def tile(self, rows: Positions, columns: Positions, shape: tuple[int, ...]) -> Tile:
        return self.mask.tile(rows + self.first[0], columns + self.first[1], (*shape[:-2], *self.size))

    def coverage(self, grid: TileGrid) -> Coverage:
        rows, columns = grid.rows + self.first[0], grid.columns + self.first[1]
        return self.mask.coverage(TileGrid(rows, columns, (*grid.shape[:-2], *self.size)))

    def select(self, index: Index, shape: tuple[int, ...]) -> Mask:
        return PartMask(self.mask.select(index, (*shape[:-2], *self.size)), self.first, self.size)


MaskLike = Mask | Tensor


def causal(offset: Offset = None) -> Mask:
    """Key j at or before the query's place: j ≤ i + S - T, or j ≤ i + offset.

    Args:
        offset: None aligns the last query with the last key; an int, or an int tensor `[batch]`
            (one per entry of the first batch axis), gives the place of query 0.
    """
    return Causal(as_place(offset))


def is_causal(mask: Mask) -> bool:
    """Whether a mask is known to allow nothing after the query's own place: `causal()`, or it and others."""
    if isinstance(mask, And):
        return is_causal(mask.left) or is_causal(mask.right)
    return isinstance(mask, Causal) and mask.offset is None


def padding(lengths: Tensor, query_lengths: Tensor | None = None) -> Mask:
    """Keys 0 … lengths-1 of each batch entry.

    Args:
        lengths: int `[B]` (or more leading batch axes), repeated over the heads.
        query_lengths: the same for the queries; queries beyond their length attend to no key.
    """
    return Padding(
        _whole(lengths, "lengths"), None if query_lengths is None else _whole(query_lengths, "query_lengths")
    )


def prefix(n: int) -> Mask:
    """Keys 0 … n-1, for every query; a prefix language model is `causal() | prefix(n)`."""
    n = _number(n, "prefix: n")
    if n < 0:
        raise ShapeError(f"prefix needs a number of keys of at least 0; got {n}")
    return Prefix(n)


def window(left: int, right: int | None = None, offset: Offset = None) -> Mask:
    """Keys near the query's place: -left ≤ j - place ≤ right, both ends included.

    Args:
        left: how many keys before the place.
        right: how many after it; None is as many as before.
        offset: as in `causal`.
    """
    left = _number(left, "window: left")
    right = left if right is None else _number(right, "window: right")
    if left + right < 0:
        raise ShapeError(f"window needs -left ≤ right; got left {left} and right {right}")
    return Window(left, right, as_place(offset))


def documents(query_ids: Tensor, key_ids: Tensor | None = None) -> Mask:
    """Packed documents: queries and keys with equal ids attend to each other; id -1 attends to no key.

    Args:
        query_ids: int `[B, T]` (or more leading batch axes, or none), repeated over the heads.
        key_ids: `[B, S]`; the queries' by default.
    """
    key_ids = query_ids if key_ids is None else key_ids
    return Documents(_whole(query_ids, "query_ids", "documents"), _whole(key_ids, "key_ids", "documents"))


@check_arguments
def blocks(layout: Tensor, size: int) -> Mask:
    """A block-sparse pattern: query i may attend to key j where `layout[..., i // size, j // size]` is True.

    Args:
        layout: bool `[..., ceil(T / size), ceil(S / size)]`, broadcast from the right over the batch axes.
        size: queries and keys of a block.
    """
    check_tensors(**{"blocks: layout": layout})
    if layout.dtype != torch.bool or layout.ndim < 2:
        raise ShapeError(f"blocks needs a bool layout of at least 2 axes; got {list(layout.shape)} {layout.dtype}")
    size = _number(size, "blocks: size")
    if size < 1:
        raise ShapeError(f"blocks needs a size of at least 1; got {size}")
    return Blocks(layout, size)


def _number(given: Any, name: str) -> Any:
    """An integer of any type: NaN, which is neither below nor above a key, would hide every key.

    Raises:
        ShapeError: it is none.
    """
    if isinstance(given, int):
        if abs(given) > 2 * MOST:
            raise ShapeError(f"{name} must be a number of places, of at most 2⁶³; got {shown(given)}")
        return max(-MOST, min(given, MOST))  # beyond all keys, as sys.maxsize is
    if isinstance(given, torch.SymInt):  # in a graph
        return given
    try:
        return _number(int(index(given)), name)
    except TypeError as error:
        got = f"{given}" if isinstance(given, float) else type(given).__name__
        raise ShapeError(f"{name} must be an integer; got {got}") from error


def as_place(offset: Any) -> Any:
    """Where query 0 stands, checked.

    Raises:
        ShapeError: no whole numbers, or farther than 2⁶².
    """
    if isinstance(offset, Tensor) and (offset.is_floating_point() or offset.dtype == torch.bool):
        raise ShapeError(f"offset must be of whole numbers; got {offset.dtype}")  # NaN would hide every key
    if isinstance(offset, Tensor):
        return _signed(offset)
    return None if offset is None else _number(offset, "offset")


def allow(tensor: Tensor) -> Mask:
    """What a bool tensor says; it broadcasts from the right to `[*batch, T, S]`, as torch does."""
    return as_mask(tensor)


def as_mask(mask: MaskLike) -> Mask:
    """The mask that a `Mask` or a bool tensor stands for.

    Raises:
        ChoiceError: a float tensor (that is a bias) or anything else.
    """
    if isinstance(mask, Mask):
        return mask
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        check_tensors(mask=mask)
        return Allow(mask)
    if isinstance(mask, Tensor):
        raise ChoiceError(
            f"mask must be bool (True = may attend); got {mask.dtype}: numbers that are added to the scores "
            "go to bias=, and a 0/1 tensor becomes a mask with .bool()"
        )
    raise ChoiceError(f"mask must be a regard mask or a bool tensor; got {type(mask).__name__}")


def _with_offset(mask: Any, index: Index, shape: tuple[int, ...]) -> Mask:
    """A mask of places for some of the batch axes: it stays as it is unless its offset differs among them."""
    return ChosenMask(mask, shape, index) if _differs(mask.offset) else mask


def _moved(mask: Any, first: tuple[int, int], shape: tuple[int, ...]) -> Mask:
    """A mask of places for a part of the queries and keys: only the place of the first query is another."""
    offset = shape[-1] - shape[-2] if mask.offset is None else mask.offset
    return replace(mask, offset=offset + first[0] - first[1])  # type: ignore[no-any-return]


def _differs(offset: Offset) -> bool:
    return isinstance(offset, Tensor) and offset.ndim > 0


def _extremes(numbers: Tensor, edges: Positions) -> tuple[Tensor, Tensor]:
    """The lowest and the highest number between one edge and the next, both `[..., len(edges) - 1]`."""
    sizes = edges.diff().tolist()
    parts = numbers.narrow(-1, int(edges[0]), sum(sizes)).split(sizes, -1)
    if not parts:
        return numbers[..., :0], numbers[..., :0]
    return torch.stack([part.amin(-1) for part in parts], -1), torch.stack([part.amax(-1) for part in parts], -1)


def rows_of(allowed: Tensor, flags: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of a mask's tile: the rows with an allowed key, and those with an allowed key whose flag is set."""
    allowed = allowed.expand(*allowed.shape[:-2], *shape[-2:])
    return allowed.any(-1), (allowed & flags[..., None, :]).any(-1)


def _slices(first: Tensor, last: Tensor) -> list[slice]:
    return [slice(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True)]


def _reduced(table: Tensor, rows: list[slice], columns: list[slice]) -> Coverage:
    """Whether some and whether all of a bool table's parts are True."""
    found = []
    for join in (torch.any, torch.all):
        bands = [join(table[..., band, :], -2) for band in rows]
        narrow = torch.stack(bands, -2) if bands else table[..., :0, :]
        cells = [join(narrow[..., part], -1) for part in columns]
        found.append(torch.stack(cells, -1) if cells else narrow[..., :0])
    return Coverage(*found)


def _whole(numbers: Tensor, name: str, mask: str = "padding") -> Tensor:
    check_tensors(**{f"{mask}: {name}": numbers})
    if numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise ShapeError(f"{mask} {name} must be whole numbers; got {numbers.dtype}")
    return _signed(numbers)


def _signed(numbers: Tensor) -> Tensor:
    """Whole numbers of a type that torch computes with."""
    return numbers.long() if numbers.dtype in (torch.uint16, torch.uint32, torch.uint64) else numbers
