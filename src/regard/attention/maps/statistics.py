"""One pass over the rows of a map, and every number that can be learned on the way.

A block of weights `[*batch, t, S]` is looked at once and forgotten, so that the memory is one block's.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.attention.maps.sources import RowBlock
from regard.errors import ChoiceError, ShapeError

LARGE = 16  # scores of this size lose a 500,000th when they are added up
CELLS = 256  # a row's largest weights are looked for in its cells' largest


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
        numbers: the normalizer's row numbers `[*batch, T]`, where the map is made of queries and keys.
        negative: whether a weight is negative; the entropy is then NaN.
    """

    entropy: Tensor
    received: Tensor
    argmax: Tensor
    total: Tensor
    pooled: Tensor | None
    top: tuple[Tensor, Tensor] | None
    numbers: Tensor | None
    negative: bool = False


def statistics_of(
    blocks: Iterable[RowBlock], shape: torch.Size, pool: Pool | None = None, top: int | None = None
) -> Summary:
    """Look once at every block, which together are the rows 0 … T-1 in their order."""
    if top is not None and top < 1:
        raise ShapeError(f"top needs k of at least 1; got {top}")
    rows, ranked = [], []
    negative = False
    received: Tensor | None = None
    pooled = _Pooled(pool, shape) if pool else None
    width = max(1, ceil(shape[-1] / CELLS))
    shared = pooled is not None and (pooled.reduce, pooled.width) == ("max", width)
    for block in blocks:
        weights, inside = block.weights, block.first % width
        cells = cut(weights, width, inside=inside)
        if pooled:
            narrow = cells if shared else cut(weights, pooled.width, pooled.reduce, block.first % pooled.width)
            pooled.add(block.start, narrow, block.first // pooled.width)
        if block.scores is None:
            negative = negative or bool((weights < 0).any())
        column = pad(weights.sum(-2), (block.first, shape[-1] - block.first - weights.shape[-1]))
        received = column if received is None else received + column
        best, key = _largest(weights, cells, width, inside)
        if top:
            values, keys = _top(weights, cells, width, inside, top)
            ranked.append((values, torch.where(keys < 0, keys, keys + block.first)))
        of_rows = _of_weights(block) if block.scores is None else _of_scores(block, best, key)
        rows.append((best, key + block.first, *of_rows))
    assert received is not None  # there is always a block, if an empty one
    best, key, *others = (_cat(part) for part in zip(*rows, strict=True))
    total, entropy, numbers = others if block.scores is None else _finish(best, *others)
    argmax = key.masked_fill(best == 0, -1)
    if negative:
        entropy = torch.full_like(entropy, torch.nan)
    largest = (torch.cat([w for w, _ in ranked], -2), torch.cat([k for _, k in ranked], -2)) if top else None
    return Summary(entropy, received, argmax, total, pooled.finish() if pooled else None, largest, numbers, negative)


def _cat(parts: tuple[Any, ...]) -> Any:
    return None if parts[0] is None else torch.cat(parts, -1)


def _of_weights(block: RowBlock) -> tuple[Tensor, Tensor, Tensor | None]:
    """Each row's sum, entropy and, where the source knows it, row number."""
    total = block.weights.sum(-1)
    return total, _entropy(block.weights, total), block.numbers


def _of_scores(block: RowBlock, best: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The score of each row's largest weight, and Σ_j p_ij (e_ij - that score): no logarithm for every weight."""
    assert block.scores is not None
    highest = block.scores.gather(-1, key[..., None])
    if float(highest.abs().max()) > LARGE:  # the sum would lose digits: measure from the highest
        block.scores.sub_(highest)
        below = block.scores.mul_(block.weights).sum(-1)
    else:
        below = block.scores.mul_(block.weights).sum(-1) - highest.squeeze(-1)
    if bool(below.isnan().any()):  # 0 · -inf
        below = -_entropy(block.weights, (best != 0).to(best.dtype)) - best.log()
    return highest.squeeze(-1), below


def _finish(best: Tensor, highest: Tensor, below: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums, entropies and log-sum-exps of rows of a softmax: ln p_j = e_j - lse."""
    dead = best == 0
    entropy = (-best.log() - below).clamp_min(0).masked_fill(dead, 0)
    numbers = (highest.double() - best.double().log()).masked_fill(dead, -torch.inf)
    return (~dead).to(best.dtype), entropy, numbers


def _entropy(weights: Tensor, total: Tensor) -> Tensor:
    share = weights / total.masked_fill(total == 0, 1)[..., None]
    # -p ln p is 0 at 0 and at 1, but its slope at 0 is infinite, and would reach the scores as NaN
    entropy: Tensor = torch.special.entr(share.masked_fill(share == 0, 1)).sum(-1)
    return entropy


def _largest(weights: Tensor, cells: Tensor, width: int, inside: int) -> tuple[Tensor, Tensor]:
    """Each row's largest weight and its key, the lower one on a tie, `[*batch, t]`."""
    if not weights.shape[-1]:
        return weights.sum(-1), weights.new_zeros(weights.shape[:-1], dtype=torch.long)
    keys = _members(cells.argmax(-1, keepdim=True), width, inside, weights.shape[-1])
    keys = keys.gather(-1, weights.gather(-1, keys).argmax(-1, keepdim=True))
    return weights.gather(-1, keys).squeeze(-1), keys.squeeze(-1)


def _top(weights: Tensor, cells: Tensor, width: int, inside: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, ties to the lower key; padded with (0, -1).

    They lie in the k cells with the largest largest, unless the k-th weight ties with a cell that was left out.
    """
    s = weights.shape[-1]
    wanted = min(k, s)
    if width > 1 and wanted < cells.shape[-1]:
        most, positions = cells.detach().topk(wanted + 1, -1)
        left_out = most[..., wanted:]
        keys = _members(positions[..., :wanted].sort(-1).values, width, inside, s)
        candidates = weights.gather(-1, keys)
        if inside or (inside + s) % width:  # in a short cell one key stands more than once
            candidates = candidates.masked_fill(pad(keys[..., 1:] == keys[..., :-1], (0, 1)), -torch.inf)
    else:
        keys, candidates = None, weights
        left_out = weights.new_full((*weights.shape[:-1], 1), -torch.inf)
    more = min(wanted + 1, candidates.shape[-1])
    values, order = candidates.topk(more, -1)
    least = values[..., wanted - 1 : wanted]
    torn = (least != 0) & ((least == left_out) | (values[..., wanted:] == least).any(-1, keepdim=True))
    values, order = _in_order(values[..., :wanted], order[..., :wanted])
    found = order if keys is None else keys.gather(-1, order)
    if bool(torn.any()):  # topk takes any of equal weights: sort these rows whole
        rows = torn.squeeze(-1)
        best, by = weights[rows].sort(dim=-1, descending=True, stable=True)
        values, found = values.clone(), found.clone()
        values[rows], found[rows] = best[..., :wanted], by[..., :wanted]
    short = k - wanted
    return pad(values, (0, short)), pad(found.masked_fill(values == 0, -1), (0, short), value=-1)


def _in_order(values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Falling values, equal ones by rising place."""
    by = positions.argsort(-1)
    values, positions = values.gather(-1, by), positions.gather(-1, by)
    values, by = values.sort(dim=-1, descending=True, stable=True)
    return values, positions.gather(-1, by)


def _members(cells: Tensor, width: int, inside: int, s: int) -> Tensor:
    """The keys of some cells of each row `[*batch, t, n · width]`; a short cell repeats its first or its last."""
    positions = torch.arange(-inside, width - inside, device=cells.device)
    return (cells[..., None] * width + positions).flatten(-2).clamp_(0, s - 1)


def cut(weights: Tensor, width: int, reduce: str = "max", inside: int = 0) -> Tensor:
    """Each row in cells of `width` keys `[*batch, t, cells]`; the last may be short.

    Args:
        inside: how far inside a cell the first key stands: the first cell is as much shorter.
    """
    if width == 1:
        return weights
    join = REDUCE[reduce][0]
    s = weights.shape[-1]
    first = min(-inside % width, s)
    last = first + (s - first) // width * width
    parts = [join(weights[..., :first], -1)[..., None]] if first else []
    if last > first:
        parts.append(join(weights[..., first:last].unflatten(-1, (-1, width)), -1))
    if s > last:
        parts.append(join(weights[..., last:], -1)[..., None])
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


class _Pooled:
    """A pooled map in the making: a cell may be spread over several blocks."""

    def __init__(self, pool: Pool, shape: torch.Size) -> None:
        self.reduce = pool.reduce
        self.join, self.add_up = REDUCE[pool.reduce]
        self.height = max(1, ceil(shape[-2] / pool.rows))
        self.width = max(1, ceil(shape[-1] / pool.columns))
        self.shape = shape
        self.bands: list[Tensor] = []

    def add(self, first: int, narrow: Tensor, before: int) -> None:
        """Rows from `first` on, whose columns are cells already, from cell `before` on."""
        narrow = self.narrow = pad(narrow, (before, ceil(self.shape[-1] / self.width) - before - narrow.shape[-1]))
        done = 0
        while done < narrow.shape[-2]:
            inside = (first + done) % self.height
            count = min(self.height - inside, narrow.shape[-2] - done)
            band = self.join(narrow[..., done : done + count, :], -2)
            if inside:
                self.bands[-1] = self.add_up(self.bands[-1], band)
            else:
                self.bands.append(band)
            done += count

    def finish(self) -> Tensor:
        pooled = torch.stack(self.bands, -2) if self.bands else self.narrow  # no bands: no rows
        if self.reduce != "mean":
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
