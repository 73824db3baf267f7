"""Tiles of a score matrix: the positions of queries among keys, and what a mask allows in each tile of a grid."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regard.attention.tracing import are_hidden
from regard.errors import ShapeError

Positions = Int[Tensor, "_"]
Tile = Bool[Tensor, "..."]
Offset = int | Tensor | None


Index = tuple[int | slice, ...]


@dataclass(frozen=True, eq=False)
class Coverage:
    """What a mask allows in the R × C tiles of a grid.

    Attributes:
        some: False where nothing in the tile is allowed, bool `[*batch, R, C]`; True where something may be.
        full: True where everything in the tile is allowed; False where something may not be.
    """

    some: Tensor
    full: Tensor

    def __and__(self, other: "Coverage") -> "Coverage":
        return Coverage(self.some & other.some, self.full & other.full)

    def __or__(self, other: "Coverage") -> "Coverage":
        return Coverage(self.some | other.some, self.full | other.full)

    def __invert__(self) -> "Coverage":
        return Coverage(~self.full, ~self.some)


@dataclass(frozen=True, eq=False)
class TileGrid:
    """Tiles of a score matrix `shape`: rows[r] … rows[r + 1] - 1 by columns[c] … columns[c + 1] - 1.

    Attributes:
        rows, columns: where tiles begin and, last, where the last one ends.
    """

    rows: Positions
    columns: Positions
    shape: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], height: int, width: int, device: torch.device) -> "TileGrid":
        """Tiles of `height` × `width`; the last ones may be short."""
        edges = [
            torch.tensor([*range(0, n, size), n] if n else [0], device=device)
            for n, size in zip(shape[-2:], (height, width), strict=True)
        ]
        return cls(edges[0], edges[1], shape)

    def ends(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first and last row of each tile `[R]`, the first and last column `[C]`."""
        return self.rows[:-1], self.rows[1:] - 1, self.columns[:-1], self.columns[1:] - 1


def query_positions(rows: Positions, shape: tuple[int, ...], offset: Offset) -> Tensor:
    """Where each query stands among the keys, `[..., t, 1]`: i + S - T, or i + offset."""
    return rows[:, None] + first_position(shape, offset, rows.device)


def first_position(shape: tuple[int, ...], offset: Offset, device: torch.device) -> int | Tensor:
    """Where query 0 stands: S - T, or the offset; a tensor of offsets as `[*leading, 1 …, 1, 1]`."""
    if offset is None:
        return shape[-1] - shape[-2]
    if isinstance(offset, Tensor):
        return along_batch(offset, shape, "offset", device) if offset.ndim else offset.to(device)
    return offset


def chosen(tile: Tensor, index: Index, shape: tuple[int, ...]) -> Tensor:
    """Some of the batch axes of a tile that broadcasts to `[*batch, t, s]`; the axes that are left stay as small."""
    tile = tile.reshape(*[1] * (len(shape) - tile.ndim), *tile.shape)
    return tile.expand(*shape[: len(index)], *tile.shape[len(index) :])[index]


def cut(whole: Tensor, rows: Positions, columns: Positions) -> Tensor:
    """`whole[..., rows, columns]`: a view where both follow each other without a gap."""
    for axis, positions in ((-2, rows), (-1, columns)):
        gapless = len(positions) and follow(positions)
        whole = (
            whole.narrow(axis, int(positions[0]), len(positions)) if gapless else whole.index_select(axis, positions)
        )
    return whole


def follow(positions: Positions) -> bool:
    """Whether each position is known to be the next after the one before it."""
    if are_hidden(positions):
        return False
    if len(positions) == 1:
        return True
    return int(positions[-1] - positions[0]) == len(positions) - 1 and bool((positions.diff() == 1).all())


def along_batch(numbers: Tensor, shape: tuple[int, ...], name: str, device: torch.device) -> Tensor:
    """Numbers of the leading batch axes, shaped `[*leading, 1 …, 1, 1]` to meet a tile on `device`."""
    batch = shape[:-2]
    fits = numbers.ndim <= len(batch) and all(n in (1, b) for n, b in zip(numbers.shape, batch, strict=False))
    if not fits:
        raise ShapeError(
            f"{name} have shape {list(numbers.shape)} and the batch axes are {list(batch)}: "
            "they are aligned with the leading batch axes, [B] or [B, …]"
        )
    return numbers.to(device).reshape(*numbers.shape, *[1] * (len(shape) - numbers.ndim))
