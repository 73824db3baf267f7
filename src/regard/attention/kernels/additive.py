"""The additive kernel: e_ij = v · tanh(q_i + k_j) in tiles that stay near the processor, inside the blockwise kernel.

The usual way writes T × S × hidden numbers to memory and reads them back. Here a tile of them is made, summed and
forgotten. And since exp(2(q + k)) = exp(2q) · exp(2k), the exponentials are computed once for every query and every
key, T + S times, and a pair costs one product and one reciprocal:

    tanh(q + k) = 1 - 2r,   r = 1 / (1 + exp(2q) · exp(2k)),   tanh' = 4 (r - r²).

Where a projection is so large that its exponential would overflow, where its numbers must not be read, or where a query
or two stand before each key, as in the steps of a recurrent decoder, tiles are r = σ(-2 (q + k)) instead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from regard.attention.kernels.blockwise import blockwise
from regard.attention.kernels.blockwise import gradients as blockwise_gradients
from regard.attention.kernels.kernel import Kernel, Seed, TileUpstream, derivatives, is_differentiated
from regard.attention.scores import Additive, Compared, Concat, Projected, Score
from regard.attention.spec import Spec
from regard.attention.tracing import are_hidden, goes_forward

TILE = 2**20  # numbers of a tile: 4 MiB in float32; smaller ones cost more in calls than they save in memory traffic
FEW = 2  # queries of a key, up to which its exponential is not worth its time
FARTHEST = {torch.float32: 40.0, torch.float64: 300.0}  # |q|, |k| up to here: exp(2|q|) and exp(-2|q|) have all digits


def refusal(query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> str | None:  # noqa: ARG001
    """Why this kernel cannot do the work; None if it can."""
    score = _inner(spec.score)
    if type(score) not in (Additive, Concat):
        return f"the score {type(score).__name__} is not a tanh of sums"
    return None


def additive(query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: Seed = 0) -> tuple[Tensor, Tensor]:
    """The same attention as the reference kernel, with scores made in tiles.

    Returns:
        output `[*batch, T, d_v]` in value's dtype, and one number per row `[*batch, T]`.
    """
    score = _inner(spec.score)
    assert isinstance(score, Additive | Concat)  # refusal() has seen to it
    return blockwise(query, key, value, spec, seed, lambda q, k: tanh_scores(q, k, score.v.to(q)))


def gradients(
    up: TileUpstream, query: Tensor, key: Tensor, value: Tensor, spec: Spec, seed: Seed, learned: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of a tile, as the blockwise kernel's."""
    score = _inner(spec.score)
    assert isinstance(score, Additive | Concat)
    compare = lambda q, k: tanh_scores(q, k, score.v.to(q))  # noqa: E731
    return blockwise_gradients(up, query, key, value, spec, seed, learned, compare)


def _inner(score: Score) -> Score:
    while isinstance(score, Projected | Compared):
        score = score.score
    return score


def tanh_scores(query: Tensor, key: Tensor, v: Tensor) -> Tensor:
    """v · tanh(q_i + k_j) `[*batch, T, S]` of queries `[*batch, T, h]`, keys `[*batch, S, h]` and v `[h]`."""
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    tiles = _plain if goes_forward(query, key, v) else _Tiled.apply
    q, k = (t.expand(*batch, *t.shape[-2:]).reshape(-1, *t.shape[-2:]) for t in (query, key))
    scores: Tensor = tiles(q, k, v)
    return scores.reshape(*batch, query.shape[-2], key.shape[-2])


@dataclass(frozen=True, eq=False)
class Tiles:
    """The tiles of queries `[n, T, h]` beside keys `[n, S, h]`, by exponentials or by the logistic function."""

    query: Tensor
    key: Tensor
    by_sigmoid: bool
    buffer: Tensor

    @classmethod
    def of(cls, query: Tensor, key: Tensor) -> "Tiles":
        buffer = query.new_empty(max(TILE, query.shape[-1]))
        if query.shape[1] <= FEW or are_hidden(query, key) or not _largest(query, key) <= FARTHEST[query.dtype]:
            return cls(-2 * query, key, True, buffer)
        return cls((2 * query).exp_(), (2 * key).exp_(), False, buffer)

    def positions(self) -> Iterator[tuple[slice, slice, slice]]:
        """Entries of the batch, queries and keys of every tile."""
        n, t, h = self.query.shape
        s = self.key.shape[-2]
        keys = max(1, min(s, TILE // h))
        rows = max(1, min(t, TILE // (h * keys)))
        entries = max(1, min(n, TILE // (h * keys * rows)))
        for entry in range(0, n, entries):
            for row in range(0, t, rows):
                for column in range(0, s, keys):
                    yield (
                        slice(entry, min(entry + entries, n)),
                        slice(row, min(row + rows, t)),
                        slice(column, min(column + keys, s)),
                    )

    def tile(self, entries: slice, rows: slice, columns: slice) -> Tensor:
        """r = (1 - tanh(q + k)) / 2 `[n', t, s, h]`, in the buffer."""
        q, k = self.query[entries, rows, None], self.key[entries, None, columns]
        shape = (q.shape[0], q.shape[1], k.shape[2], q.shape[3])
        tile = self.buffer[: shape[0] * shape[1] * shape[2] * shape[3]].view(shape)
        if self.by_sigmoid:
            return torch.add(q, k, alpha=-2, out=tile).sigmoid_()
        return torch.addcmul(q.new_ones(()), q, k, out=tile).reciprocal_()


def _largest(*tensors: Tensor) -> float:
    return max([float(t.abs().max()) for t in tensors if t.numel()], default=0.0)


def _plain(query: Tensor, key: Tensor, v: Tensor) -> Tensor:
    return torch.tanh(query[:, :, None] + key[:, None]) @ v


class _Tiled(torch.autograd.Function):
    """Scores by tiles, and their first derivative by the same tiles; the second is the plain formula's."""

    @staticmethod
    def forward(ctx, query, key, v):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(query, key, v)
        tiles = Tiles.of(query, key)
        scores = query.new_empty(query.shape[0], query.shape[1], key.shape[1])
        weight = -2 * v
        for place in tiles.positions():
            scores[place] = tiles.tile(*place) @ weight
        return scores.add_(v.sum())

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        query, key, v = ctx.saved_tensors
        if is_differentiated(upstream):
            return (*derivatives(_plain, (query, key, v), (), upstream),)
        tiles = Tiles.of(query, key)
        like = torch.empty_like if upstream.numel() else torch.zeros_like  # without pairs no tile begins the sums
        found = [like(t, memory_format=torch.contiguous_format) for t in (query, key)]
        for_v = torch.zeros_like(v)
        other = torch.empty_like(tiles.buffer)
        for entries, rows, columns in tiles.positions():
            r = tiles.tile(entries, rows, columns)
            g = upstream[entries, rows, columns].contiguous()
            slope = torch.addcmul(r, r, r, value=-1, out=other[: r.numel()].view(r.shape))
            for_v += g.view(-1) @ r.view(-1, r.shape[-1])
            slope.mul_(g[..., None])
            _add(found[0][entries, rows], slope.sum(2), columns.start == 0)
            _add(found[1][entries, columns], slope[:, 0] if slope.shape[1] == 1 else slope.sum(1), rows.start == 0)
        weight = 4 * v
        return found[0].mul_(weight), found[1].mul_(weight), upstream.sum() - 2 * for_v


def _add(total: Tensor, part: Tensor, first: bool) -> None:
    """Add a tile's part to a sum that its first tile begins."""
    total.copy_(part) if first else total.add_(part)


def _worth(_query: Tensor, _key: Tensor, _value: Tensor, _spec: Spec, shape: tuple[int, ...]) -> str | None:
    pairs = prod(shape)
    return None if pairs >= 2**10 else f"{pairs:,} pairs are too few for tiles"


KERNEL = Kernel(
    "additive", additive, "a tanh of sums, computed in cache-sized tiles", refusal, _worth, gradients=gradients
)
