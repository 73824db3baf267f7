"""The reference kernel: the whole equation on one screen. Every other kernel is tested equal to it."""

from math import isfinite, prod

import torch
from torch import Tensor

from regard.attention.masks import Mask
from regard.attention.spec import Spec
from regard.shapes import batch_shape, score_dtype


def reference(query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: int) -> tuple[Tensor, Tensor]:
    """output = dropout(normalize(score(query, key) + bias, mask)) · value.

    Scores and weights are computed in float32 (float64 for float64 inputs). A NaN or infinity in a
    key or value that a query may not look at never reaches that query's output or gradient.

    Returns:
        output `[*batch, T, d_v]` in value's dtype, and one number per row `[*batch, T]`.
    """
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    wide = score_dtype(query, key, value)
    q, k, v = (tensor.to(wide) for tensor in (query, key, value))
    rows = torch.arange(shape[-2], device=query.device)
    if spec.mask is not None and len(rows) and is_poisoned(q, k, v):
        answers = [_alone(q, k, v, spec, seed, row, shape) for row in rows.split(1)]
        output, numbers = (
            torch.cat(parts, dim) for parts, dim in zip(zip(*answers, strict=True), (-2, -1), strict=True)
        )
    else:
        output, numbers = _attend(q, k, v, spec, seed, rows, shape)
    return output.to(value.dtype), numbers


def _attend(
    query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: int, rows: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    scores = spec.scores(query, key, rows, shape)
    allowed = spec.allowed(rows, shape).expand_as(scores)
    weights, numbers = spec.normalizer(scores, allowed)
    if spec.dropout:
        numbered = torch.arange(prod(shape[:-2]), device=rows.device).reshape(shape[:-2])
        columns = torch.arange(shape[-1], device=rows.device)
        weights = weights * kept(numbered, rows, columns, seed, spec.dropout) / (1 - spec.dropout)
    return weights @ value, numbers


def _alone(
    query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: int, row: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """One query beside only the keys that it may see: 0 · NaN is NaN, so forbidden keys become 0 first."""
    seen = spec.allowed(row, shape).expand(*shape[:-2], 1, shape[-1]).transpose(-2, -1)
    asks = seen.any(-2, keepdim=True)
    return _attend(
        torch.where(asks, query[..., row, :], 0), torch.where(seen, key, 0), torch.where(seen, value, 0),
        spec, seed, row, shape,
    )  # fmt: skip


def only_seen(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros in the place of queries that may look nowhere, and of keys and values that nobody may look at."""
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    columns = torch.arange(shape[-1], device=query.device)
    asks, seen = [], torch.zeros(*shape[:-2], shape[-1], dtype=torch.bool, device=query.device)
    for rows in torch.arange(shape[-2], device=query.device).split(64):
        allowed = mask.tile(rows, columns, shape).expand(*shape[:-2], len(rows), shape[-1])
        asks.append(allowed.any(-1))
        seen |= allowed.any(-2)
    asking, batch = torch.cat(asks, -1)[..., None], seen.shape[:-1]
    # a key that several entries of the batch share may be seen by one of them and not by another
    return (
        torch.where(asking, query.expand(*batch, *query.shape[-2:]), 0),
        torch.where(seen[..., None], key.expand(*batch, *key.shape[-2:]), 0),
        torch.where(seen[..., None], value, 0),
    )


def is_poisoned(*tensors: Tensor) -> bool:
    """Whether any of the tensors may hold a NaN or an infinity; inside a torch.func transform nobody can tell."""
    if torch._C._are_functorch_transforms_active():
        return True
    if all(isfinite(_sum(t)) for t in tensors):
        return False  # the quick look: a sum of finite numbers may overflow, but no sum hides an infinity
    return any(not bool(torch.isfinite(end)) for t in tensors if t.numel() for end in t.detach().aminmax())


def _sum(tensor: Tensor) -> float:
    wide = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
    return tensor.detach().sum(dtype=wide).item()


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
