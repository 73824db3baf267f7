"""Dropout on attention weights: a counter hash decides, so that every kernel drops the same weights of any tile."""

from math import prod

import torch
from torch import Tensor

from regard.attention.kernels.kernel import Seed
from regard.attention.spec import Spec


def drop(weights: Tensor, rows: Tensor | None, shape: tuple[int, ...], seed: Seed, spec: Spec) -> Tensor:
    """The weights `[*batch, t, S]` of the queries `rows` (None: all) after dropout: kept ones over 1 - `dropout`."""
    device, dropout = weights.device, spec.dropout
    rows = torch.arange(shape[-2], device=device) if rows is None else rows
    batch = torch.arange(prod(shape[:-2]), device=device).reshape(shape[:-2])
    columns = torch.arange(shape[-1], device=device)
    return weights * kept(batch, rows + spec.first[0], columns + spec.first[1], seed, dropout) / (1 - dropout)


def kept(batch: Tensor, rows: Tensor, columns: Tensor, seed: Seed, dropout: float) -> Tensor:
    """Which weights dropout keeps: a counter hash of (seed, batch, i, j), so any tile can be drawn alone.

    Args:
        batch: the numbers of these entries of the batch, counted over all its axes, `[*batch]`.
        rows: the indices of these queries `[t]`.
        columns: the indices of these keys `[s]`.
        seed: one per call, drawn from torch's generator: an int, or an int64 tensor without axes.
        dropout: the probability of dropping.

    Returns:
        bool `[*batch, t, s]`.
    """
    start = seed.int() if isinstance(seed, Tensor) else _signed(seed)
    x = _mix(start ^ _mix(batch.int()[..., None, None] + _signed(0x9E3779B9)))
    x = _mix(_mix(x ^ rows.int()[:, None]) ^ columns.int())
    # unsigned numbers as signed ones are in order once their highest bit is turned
    return (x ^ _signed(1 << 31)) >= _signed(int(dropout * 2**32) ^ 1 << 31)


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finalizer (Wellons, "Prospecting for hash functions", lowbias32) on int32, whose products wrap."""
    x = x ^ (x >> 16 & 0xFFFF)
    x.mul_(_signed(0x7FEB352D))
    x ^= x >> 15 & 0x1FFFF
    x.mul_(_signed(0x846CA68B))
    x ^= x >> 16 & 0xFFFF
    return x


def _signed(number: int) -> int:
    """The same 32 bits as a signed number."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)
