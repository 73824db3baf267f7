"""The order of an epoch: a permutation that is a pure function of (seed, epoch, position), computed and never held.

A pool is what is sorted by length at a time: consecutive positions of the permutation. Memory depends on the pool, not
on the corpus, and any process can begin anywhere.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
ROUNDS = 4  # of the Feistel network; four make a strong permutation of a strong function (Luby and Rackoff 1988)


def permuted(positions: Indices, count: int, key: int) -> Indices:
    """The values of a permutation of 0 … count-1 at some positions.

    A Feistel network permutes the next power of four; a value beyond `count` is permuted again until it is below
    (cycle walking).

    Args:
        positions: each in 0 … count-1.
        count: size of the permutation.
        key: another key, another permutation.
    """
    bits = max(1, (max(1, count - 1).bit_length() + 1) // 2)
    found = _feistel(positions.astype(np.uint64), bits, key)
    beyond = found >= count
    while beyond.any():
        found[beyond] = _feistel(found[beyond], bits, key)
        beyond = found >= count
    return found.astype(np.int64)


def pools(count: int, size: int, key: int) -> Iterator[Indices]:
    """The indices of an epoch, `size` at a time; in their own order if one pool holds them all."""
    if count <= size:
        yield np.arange(count)
        return
    for first in range(0, count, size):
        yield permuted(np.arange(first, min(first + size, count)), count, key)


def _feistel(values: NDArray[np.uint64], bits: int, key: int) -> NDArray[np.uint64]:
    low = np.uint64((1 << bits) - 1)
    left, right = values >> np.uint64(bits), values & low
    for number in range(ROUNDS):
        left, right = right, left ^ (_mixed(right, key + number * 0x9E3779B9) & low)
    return (left << np.uint64(bits)) | right


def _mixed(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele et al. 2014) of values and key."""
    x = values + np.uint64((key * 0x9E3779B97F4A7C15) & (2**64 - 1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
