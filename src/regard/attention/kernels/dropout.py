"""Dropout on attention weights: a counter hash decides, so that every kernel drops the same weights of any tile."""

from math import prod

import torch
from torch import Tensor


def drop(weights: Tensor, rows: Tensor, shape: tuple[int, ...], seed: int, dropout: float) -> Tensor:
    """The weights `[*batch, t, S]` of the queries `rows` after dropout: kept ones divided by 1 - `dropout`."""
    batch = torch.arange(prod(shape[:-2]), device=rows.device).reshape(shape[:-2])
    columns = torch.arange(shape[-1], device=rows.device)
    return weights * kept(batch, rows, columns, seed, dropout) / (1 - dropout)


def kept(batch: Tensor, rows: Tensor, columns: Tensor, seed: int, dropout: float) -> Tensor:
    """Which weights dropout keeps: a counter hash of (seed, batch, i, j), so any tile can be drawn alone.

    Args:
        batch: the numbers of these entries of the batch, counted over all its axes, `[*batch]`.
        rows: the indices of these queries `[t]`.
        columns: the indices of these keys `[s]`.
        seed: one per call, drawn from torch's generator.
        dropout: the probability of dropping.

    Returns:
        bool `[*batch, t, s]`.
    """
    x = _mix(_signed(seed) ^ _mix(batch.int()[..., None, None] + _signed(0x9E3779B9)))
    x = _mix(_mix(x ^ rows.int()[:, None]) ^ columns.int())
    # unsigned numbers as signed ones are in order once their highest bit is turned
    return (x ^ _signed(1 << 31)) >= _signed(int(dropout * 2**32) ^ 1 << 31)


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser (Wellons, "Prospecting for hash functions", lowbias32) on int32, whose products wrap."""
    x = x ^ (x >> 16 & 0xFFFF)
    x.mul_(_signed(0x7FEB352D))
    x ^= x >> 15 & 0x1FFFF
    x.mul_(_signed(0x846CA68B))
    x ^= x >> 16 & 0xFFFF
    return x


def _signed(number: int) -> int:
    """The same 32 bits as a signed number."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)
