"""A map times a vector, from either side: wᵀA and A·w, of rows that come in blocks.

Without a gradient a block is used once and written over. With one, each block is computed again in the backward pass
(Chen et al. 2016), so that the memory stays one block's in both directions.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from regard.attention.maps.sources import RowBlock, WeightSource
from regard.attention.tracing import goes_forward, is_traced
from regard.errors import ShapeError

Product = Callable[[WeightSource, Tensor, int, int, list[Tensor]], Tensor]
"""A source times a vector along one axis: (source, vector, size of the other axis, rows of a block, room)."""


def fit_vector(weights: Tensor, size: int, batch: torch.Size, like: Tensor, axis: str) -> Tensor:
    """A vector `[*batch, size]` or `[size]` in the map's dtype, on its device, with all batch axes.

    Args:
        weights: one number for each place of an axis of the map.
        size: of that axis.
        batch: the map's batch axes.
        like: of the map's dtype and device.
        axis: what the error calls the places.

    Raises:
        ShapeError: its last axis or its batch axes are not the map's.
    """
    if weights.ndim == 0 or weights.shape[-1] != size:
        raise ShapeError(
            f"weights need one number for each of the map's {size} {axis}; got shape {list(weights.shape)}"
        )
    own = weights.shape[:-1]
    if len(own) > len(batch) or any(n not in (1, m) for n, m in zip(own[::-1], batch[::-1], strict=False)):
        raise ShapeError(
            f"weights have shape {list(weights.shape)} and the map's batch axes are {list(batch)}: give "
            f"[*batch, {size}], or [{size}] for all of them"
        )
    return weights.to(like.device, like.dtype).expand(*batch, size)


def pulled(source: WeightSource, weights: Tensor, s: int, size: int, room: list[Tensor]) -> Tensor:
    """wᵀA `[*batch, S]` of weights `[*batch, T]`, `size` rows at a time."""

    def product(block: RowBlock) -> Tensor:
        rows = weights[..., block.start : block.start + block.weights.shape[-2]]
        received = (rows.unsqueeze(-2) @ block.weights).squeeze(-2)
        return pad(received, (block.first, s - block.first - received.shape[-1]))

    total = weights.new_zeros(*weights.shape[:-1], s)
    for part in _products(source, product, weights, size, weights.shape[-1], room):
        total = total + part
    return total


def pushed(source: WeightSource, weights: Tensor, t: int, size: int, room: list[Tensor]) -> Tensor:
    """A·w `[*batch, T]` of weights `[*batch, S]`, `size` rows at a time."""

    def product(block: RowBlock) -> Tensor:
        keys = weights[..., block.first : block.first + block.weights.shape[-1]]
        return (block.weights @ keys.unsqueeze(-1)).squeeze(-1)

    return torch.cat(list(_products(source, product, weights, size, t, room)), -1)


def _products(
    source: WeightSource, product: Callable[[RowBlock], Tensor], weights: Tensor, size: int, t: int, room: list[Tensor]
) -> Iterator[Tensor]:
    """What `product` makes of each block of rows, in their order."""
    row = source.weigh(torch.arange(min(1, t), device=source.like.device))  # a score may take no call without queries
    traced = is_traced(weights, source.like) or goes_forward(weights, row)
    tracked = torch.is_grad_enabled() and (weights.requires_grad or row.requires_grad)
    if not traced and not tracked:
        yield from map(product, source.blocks(size, t, room))
        return

    def of(rows: Tensor, start: int) -> Tensor:
        return product(RowBlock(start, source.weigh(rows)))

    for number, rows in enumerate(torch.arange(t, device=source.like.device).split(size)):
        # torch.func's transforms and forward derivatives take no checkpoints
        yield of(rows, number * size) if traced else checkpoint(of, rows, number * size, use_reentrant=False)
