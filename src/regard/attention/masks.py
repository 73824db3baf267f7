"""Masks: which query may look at which key. True means *may look*, everywhere.

A mask is a small value. It answers for any tile of the score matrix and is combined with
`&`, `|` and `~`. Masks that speak of places follow one rule: query i stands at i + S - T
(`offset=None`: the last query sees the last key), or at i + offset.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regard.errors import ChoiceError, ShapeError
from regard.shapes import broadcast_to_scores

Places = Int[Tensor, "_"]
Tile = Bool[Tensor, "..."]
Offset = int | Tensor | None


class Mask:
    """A relation between queries and keys; the base of all masks."""

    def tile(self, rows: Places, columns: Places, shape: tuple[int, ...]) -> Tile:
        """Whether query `rows[i]` may look at key `columns[j]`.

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

    def __and__(self, other: "MaskLike") -> "Mask":
        return And(self, as_mask(other))

    def __or__(self, other: "MaskLike") -> "Mask":
        return Or(self, as_mask(other))

    def __invert__(self) -> "Mask":
        return Not(self)


@dataclass(frozen=True, eq=False)
class And(Mask):
    """Both allow it."""

    left: Mask
    right: Mask

    def tile(self, rows: Places, columns: Places, shape: tuple[int, ...]) -> Tile:
        return self.left.tile(rows, columns, shape) & self.right.tile(rows, columns, shape)


@dataclass(frozen=True, eq=False)
class Or(Mask):
    """At least one allows it."""

    left: Mask
    right: Mask

    def tile(self, rows: Places, columns: Places, shape: tuple[int, ...]) -> Tile:
        return self.left.tile(rows, columns, shape) | self.right.tile(rows, columns, shape)


@dataclass(frozen=True, eq=False)
class Not(Mask):
    """The opposite."""

    mask: Mask

    def tile(self, rows: Places, columns: Places, shape: tuple[int, ...]) -> Tile:
        return ~self.mask.tile(rows, columns, shape)


@dataclass(frozen=True, eq=False)
class Causal(Mask):
    """Key j stands at or before query i's place."""

    offset: Offset = None

    def tile(self, rows: Places, columns: Places, shape: tuple[int, ...]) -> Tile:
        return columns <= places(rows, shape, self.offset)

    def is_triangle(self, shape: tuple[int, ...]) -> bool:
        """Whether this is the square lower triangle that torch calls `is_causal`."""
        offset = shape[-1] - shape[-2] if self.offset is None else self.offset
        return isinstance(offset, int) and offset == 0


@dataclass(frozen=True, eq=False)
class Padding(Mask):
    """Keys below each batch entry's length, asked by queries below its query length."""

    lengths: Tensor
    query_lengths: Tensor | None = None

    def tile(self, rows: Places, columns: Places, shape: tuple[int, ...]) -> Tile:
        allowed = columns < _along_batch(self.lengths, shape, "padding lengths")
        if self.query_lengths is None:
            return allowed
        asking = rows[:, None] < _along_batch(self.query_lengths, shape, "padding query_lengths")
        return allowed & asking


@dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """Keys 0 … n-1."""

    n: int

    def tile(self, rows: Places, columns: Places, shape: tuple[int, ...]) -> Tile:  # noqa: ARG002
        return (columns < self.n).expand(len(rows), len(columns))


@dataclass(frozen=True, eq=False)
class Spans(Mask):
    """Keys start_i … end_i - 1 for query i: any mask whose rows have no gaps, in O(T).

    Attributes:
        start, end: int, broadcastable to `[*batch, T]`.
    """

    start: Tensor
    end: Tensor

    def tile(self, rows: Places, columns: Places, shape: tuple[int, ...]) -> Tile:
        start, end = (
            part.expand(*part.shape[:-1], shape[-2])[..., rows.to(part.device), None] for part in (self.start, self.end)
        )
        return (columns >= start) & (columns < end)


@dataclass(frozen=True, eq=False)
class Allow(Mask):
    """Exactly what a bool tensor says, broadcast from the right as torch does."""

    tensor: Tensor

    def tile(self, rows: Places, columns: Places, shape: tuple[int, ...]) -> Tile:
        whole = broadcast_to_scores(self.tensor, shape, "mask")
        return whole.to(rows.device)[..., rows[:, None], columns]


@dataclass(frozen=True, eq=False)
class ChosenMask(Mask):
    """A mask of scores `whole` for some of their batch axes."""

    mask: Mask
    whole: tuple[int, ...]
    index: tuple[int | slice, ...]

    def tile(self, rows: Places, columns: Places, shape: tuple[int, ...]) -> Tile:  # noqa: ARG002
        tile = self.mask.tile(rows, columns, self.whole)
        return tile.expand(*self.whole[:-2], len(rows), len(columns))[self.index]


MaskLike = Mask | Tensor


def causal(offset: Offset = None) -> Mask:
    """Key j at or before the query's place: j ≤ i + S - T, or j ≤ i + offset.

    Args:
        offset: None aligns the last query with the last key; an int, or an int tensor `[batch]`
            (one per entry of the first batch axis), gives the place of query 0.
    """
    return Causal(offset)


def padding(lengths: Tensor, query_lengths: Tensor | None = None) -> Mask:
    """Keys 0 … lengths-1 of each batch entry.

    Args:
        lengths: int `[B]` (or more leading batch axes), repeated over the heads.
        query_lengths: the same for the queries; queries beyond their length look nowhere.
    """
    return Padding(
        _whole(lengths, "lengths"), None if query_lengths is None else _whole(query_lengths, "query_lengths")
    )


def prefix(n: int) -> Mask:
    """Keys 0 … n-1, for every query; a prefix language model is `causal() | prefix(n)`."""
    if n < 0:
        raise ShapeError(f"prefix needs a number of keys of at least 0; got {n}")
    return Prefix(n)


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
        return Allow(mask)
    if isinstance(mask, Tensor):
        raise ChoiceError(
            f"mask must be bool (True = may look); got {mask.dtype}: numbers that are added to the scores "
            "go to bias=, and a 0/1 tensor becomes a mask with .bool()"
        )
    raise ChoiceError(f"mask must be a regard mask or a bool tensor; got {type(mask).__name__}")


def places(rows: Places, shape: tuple[int, ...], offset: Offset) -> Tensor:
    """Where each query stands among the keys, `[..., t, 1]`: i + S - T, or i + offset."""
    if offset is None:
        offset = shape[-1] - shape[-2]
    if isinstance(offset, Tensor) and offset.ndim:
        offset = _along_batch(offset.to(rows.device), shape, "offset")
    return rows[:, None] + offset


def _whole(lengths: Tensor, name: str) -> Tensor:
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ShapeError(f"padding {name} must be whole numbers; got {lengths.dtype}: give the number of real keys")
    return lengths


def _along_batch(numbers: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Numbers of the leading batch axes, shaped `[*leading, 1 …, 1, 1]` to meet a tile."""
    batch = shape[:-2]
    fits = numbers.ndim <= len(batch) and all(n in (1, b) for n, b in zip(numbers.shape, batch, strict=False))
    if not fits:
        raise ShapeError(
            f"{name} have shape {list(numbers.shape)} and the batch axes are {list(batch)}: "
            "they are aligned with the leading batch axes, [B] or [B, …]"
        )
    return numbers.reshape(*numbers.shape, *[1] * (len(shape) - numbers.ndim))
