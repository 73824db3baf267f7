"""The windowed kernel: torch's fused kernel on rows in blocks, each beside only the keys that it may attend to.

A window of w keys costs T · w products instead of T · S; padding, documents, prefixes, causal masks of any offset and
block-sparse patterns are served by the same pieces. Memory is O(T + S) and one block.
"""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from regard.attention.biases import ByDistance
from regard.attention.kernels import fused as whole
from regard.attention.kernels.kernel import Kernel, Seed, TileUpstream, number_bytes
from regard.attention.pieces import BLOCK, Piece, empty_share, outer_axes, pieces
from regard.attention.spec import Spec

AT_ONCE = 2**16  # keys of all pieces that go to torch's kernel as one batch
AT_ONCE_BACKWARD = 2**13  # their gradients are as large


LARGE = 2**20  # pairs from which on it pays to look for empty blocks
EMPTY = 0.1  # the share of the pairs that must be empty for it


def refusal(query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> str | None:
    """Why this kernel cannot do the work; None if it can."""
    if spec.mask is None:
        return "there is no mask, so there is nothing to leave out"
    if query.device.type != "cpu":
        return f"on {query.device.type} a mask is not asked which blocks it leaves empty"
    return whole.refusal(query, key, value, spec)


def windowed(query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: Seed = 0) -> tuple[Tensor, Tensor]:
    """The same attention as the reference kernel, without what the mask leaves empty.

    Returns:
        output `[*batch, T, d_v]` in value's dtype, and each row's log-sum-exp `[*batch, T]`.
    """
    return whole.fused(query, key, value, spec, seed, _by_coverage)


def gradients(
    up: TileUpstream, query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: Seed, learned: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of a tile, as the fused kernel's."""
    return whole.gradients(up, query, key, value, spec, seed, learned, _by_coverage)


def _by_coverage(spec: Spec, shape: tuple[int, ...], device: torch.device, backward: bool) -> Iterator[Piece]:
    assert spec.mask is not None  # refusal() has seen to it
    by_distance = spec.mask.is_by_distance() and isinstance(spec.bias, ByDistance | None)
    alike = 0 if not by_distance else AT_ONCE_BACKWARD if backward else AT_ONCE
    # pieces that are alike go to torch's kernel as one batch, which leaves room for the heads alone
    outer = max(outer_axes(spec.mask, shape, device), len(shape) - 3 if by_distance else 0)
    pairs = whole.most_pairs(spec, shape, device, backward)
    return pieces(spec.mask, shape, device, outer=outer, pairs=pairs, alike=alike)


def _worth(query: Tensor, _key: Tensor, _value: Tensor, spec: Spec, shape: tuple[int, ...]) -> str | None:
    assert spec.mask is not None  # or it has refused
    if prod(shape) < LARGE:
        return f"{prod(shape):,} pairs are too few to look for empty blocks"
    if whole.is_whole(spec, shape):
        return "torch's kernel handles this mask natively"
    empty = empty_share(spec.mask, shape, query.device)
    return None if empty >= EMPTY else f"the mask leaves {empty:.0%} of the blocks empty"


def _extra_bytes(_query: Tensor, _key: Tensor, value: Tensor, spec: Spec, shape: tuple[int, ...]) -> int:
    return min(BLOCK, whole.spread(spec, shape, value.device) * shape[-2] * shape[-1]) * (number_bytes(value) + 1)


def _witness(output: Tensor, _spec: Spec, _shape: tuple[int, ...]) -> Tensor:
    return output


KERNEL = Kernel(
    "windowed", windowed,
    "softmax over a dot product, under a mask that leaves blocks empty: torch's fused kernel on the others", refusal,
    _worth, _extra_bytes, _witness, gradients,
)  # fmt: skip
