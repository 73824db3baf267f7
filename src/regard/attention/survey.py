"""One pass over the rows of a map, and every number that can be learned on the way.

A block of weights `[*batch, t, S]` is looked at once and forgotten, so that the memory is one block's.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.errors import ChoiceError, ShapeError


@dataclass(frozen=True)
class Pool:
    """Cells of ceil(T/rows) × ceil(S/columns) weights, the last may be short.

    Attributes:
        rows, columns: number of cells along the queries and the keys, at most.
        reduce: "max", "mean" or "sum" over each cell.
    """

    rows: int
    columns: int
    reduce: str = "max"

    def __post_init__(self) -> None:
        if self.reduce not in REDUCE:
            raise ChoiceError(f"unknown reduce {self.reduce!r}: expected one of {', '.join(map(repr, REDUCE))}")
        if self.rows < 1 or self.columns < 1:
            raise ShapeError(f"pool needs at least 1 × 1 cells; got {self.rows} × {self.columns}")


@dataclass(frozen=True, eq=False)
class Summary:
    """What one pass over a map has found.

    Attributes:
        entropy: H_i = -Σ_j p_ij ln p_ij `[*batch, T]` in nats, of the row divided by its sum; 0 for a dead row.
        received: Σ_i α_ij `[*batch, S]`, how much each key is looked at.
        argmax: the key each query looks at most `[*batch, T]`, the lower index on a tie, -1 for a dead row.
        total: Σ_j α_ij `[*batch, T]`: 1, less beside a sink, 0 for a dead row.
        pooled: the map in cells `[*batch, rows, columns]`, where asked for.
        top: the largest weights of each row and their keys, both `[*batch, T, k]`, padded with (0, -1), or None.
    """

    entropy: Tensor
    received: Tensor
    argmax: Tensor
    total: Tensor
    pooled: Tensor | None
    top: tuple[Tensor, Tensor] | None


def survey(
    blocks: Iterable[tuple[Tensor, Tensor]], shape: torch.Size, pool: Pool | None = None, top: int | None = None
) -> Summary:
    """Look once at every (rows, weights) of `blocks`, which together are the rows 0 … T-1 in their order."""
    if top is not None and top < 1:
        raise ShapeError(f"top needs k of at least 1; got {top}")
    entropies, totals, best = [], [], []
    received: Tensor | None = None
    cells = _Cells(pool, shape) if pool else None
    for rows, weights in blocks:
        total = weights.sum(-1, keepdim=True)
        totals.append(total.squeeze(-1))
        entropies.append(_entropy(weights, total))
        best.append(_top(weights, top or 1))
        column = weights.sum(-2)
        received = column if received is None else received + column
        if cells:
            cells.add(int(rows[0]) if len(rows) else 0, weights)
    assert received is not None  # there is always a block, if an empty one
    weights, keys = torch.cat([w for w, _ in best], -2), torch.cat([k for _, k in best], -2)
    return Summary(
        torch.cat(entropies, -1), received, keys[..., 0], torch.cat(totals, -1),
        cells.finish() if cells else None, (weights, keys) if top else None,
    )  # fmt: skip


def _entropy(weights: Tensor, total: Tensor) -> Tensor:
    share = weights / total.masked_fill(total == 0, 1)
    # -p ln p is 0 at 0 and at 1, but its slope at 0 is infinite, and would reach the scores as NaN
    entropy: Tensor = torch.special.entr(share.masked_fill(share == 0, 1)).sum(-1)
    return entropy


def _top(weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, ties to the lower index; padded with (0, -1)."""
    wanted = min(k + 1, weights.shape[-1])
    values, keys = weights.topk(wanted, -1)
    # topk takes any of equal weights: where the last one in equals the first one out, sort the whole rows
    torn = bool((values[..., k - 1] == values[..., k])[values[..., k - 1] > 0].any()) if wanted > k else False
    if torn:
        values, keys = weights.sort(dim=-1, descending=True, stable=True)
    else:
        order = keys.argsort(-1)
        values, keys = values.gather(-1, order), keys.gather(-1, order)
        values, order = values.sort(dim=-1, descending=True, stable=True)
        keys = keys.gather(-1, order)
    values, keys = values[..., :k], keys[..., :k]
    short = k - values.shape[-1]
    return pad(values, (0, short)), pad(keys.masked_fill(values == 0, -1), (0, short), value=-1)


class _Cells:
    """A pooled map in the making: a cell may be spread over several blocks."""

    def __init__(self, pool: Pool, shape: torch.Size) -> None:
        self.reduce, self.join = REDUCE[pool.reduce]
        self.mean = pool.reduce == "mean"
        self.height = max(1, ceil(shape[-2] / pool.rows))
        self.width = max(1, ceil(shape[-1] / pool.columns))
        self.shape = shape
        self.bands: list[Tensor] = []

    def add(self, first: int, weights: Tensor) -> None:
        narrow = self.narrow = self._columns(weights)
        done = 0
        while done < weights.shape[-2]:
            inside = (first + done) % self.height
            count = min(self.height - inside, weights.shape[-2] - done)
            band = self.reduce(narrow[..., done : done + count, :], -2)
            if inside:
                self.bands[-1] = self.join(self.bands[-1], band)
            else:
                self.bands.append(band)
            done += count

    def _columns(self, weights: Tensor) -> Tensor:
        """Each row's cells `[*batch, t, cells]`."""
        whole = weights.shape[-1] // self.width * self.width
        parts = [self.reduce(weights[..., :whole].unflatten(-1, (-1, self.width)), -1)] if whole else []
        if whole < weights.shape[-1]:
            parts.append(self.reduce(weights[..., whole:], -1)[..., None])
        return torch.cat(parts, -1) if parts else weights

    def finish(self) -> Tensor:
        pooled = torch.stack(self.bands, -2) if self.bands else self.narrow  # no bands: no rows
        if not self.mean:
            return pooled
        return pooled / (_sizes(self.shape[-2], self.height)[:, None] * _sizes(self.shape[-1], self.width)).to(pooled)


def _sizes(n: int, cell: int) -> Tensor:
    """How many places each cell of an axis of n has."""
    return torch.tensor([min(cell, n - start) for start in range(0, n, cell)])


Reduce = Callable[[Tensor, int], Tensor]
REDUCE: dict[str, tuple[Reduce, Callable[[Tensor, Tensor], Tensor]]] = {
    "max": (lambda cell, dim: cell.amax(dim), torch.maximum),
    "mean": (lambda cell, dim: cell.sum(dim), torch.add),
    "sum": (lambda cell, dim: cell.sum(dim), torch.add),
}
