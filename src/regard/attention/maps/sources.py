"""Where a map's rows come from: given weights, queries and keys under a spec, or another map's rows, changed.

A source answers for chosen rows (`weigh`) and for all rows block by block (`blocks`); queries and keys, with one number
per row, also for a tile without the rest of its rows (`ComputedWeights.again`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from regard.attention.frozen import settings_in, settings_of, tensors_of
from regard.attention.kernels.nonfinite import is_poisoned, isolated
from regard.attention.maps.compact import freeze
from regard.attention.masks import Mask, rows_of
from regard.attention.normalizers import Softmax
from regard.attention.pieces import WIDTH
from regard.attention.scores import as_scores, is_product
from regard.attention.spec import Spec
from regard.attention.tiles import TileGrid
from regard.attention.tracing import are_hidden, goes_forward, is_traced
from regard.shapes import batch_shape, check_widths, score_dtype, share_heads

Index = tuple[int | slice, ...]
Span = tuple[int, int]


@dataclass(eq=False)
class RowBlock:
    """Some rows that follow each other; the next block may be written over it.

    Attributes:
        start: the first row's index.
        weights: `[*batch, t, n]` of n keys that follow each other; all others have none.
        numbers: the normalizer's row numbers `[*batch, t]`, where the source has them.
        scores: where the weights are the softmax of something, that, with the most negative number for what may
            not be looked at; the consumer of the block may write over it.
        first: the first key's index.
    """

    start: int
    weights: Tensor
    numbers: Tensor | None = None
    scores: Tensor | None = None
    first: int = 0


class WeightSource:
    """What a map's rows are computed from.

    Attributes:
        like: an empty tensor of the map's dtype and device.
        row: how many weights are computed for a query.
    """

    like: Tensor
    row: int

    def weigh(self, rows: Tensor | None) -> Tensor:
        """The weights of the queries `rows` [t] (None: of all queries), `[*batch, t, S]`."""
        raise NotImplementedError

    def blocks(self, size: int, t: int, room: list[Tensor] | None = None) -> Iterator[RowBlock]:  # noqa: ARG002
        """The rows 0 … t-1, `size` at a time; `room` is memory to use, or where it is left for the next."""
        for number, rows in enumerate(torch.arange(t, device=self.like.device).split(size)):
            yield RowBlock(number * size, self.weigh(rows))

    def versions(self) -> tuple[Any, ...]:
        """Torch's counts of how often the tensors that it is made of were written to, and the numbers it is made of."""
        return versions_of(list(vars(self).values()))  # another thread may keep what it has computed there

    def select(self, index: Index) -> "WeightSource":
        """The same for some of the batch axes."""
        raise NotImplementedError

    def frozen(self) -> "WeightSource":
        """The same without a gradient, and without anything that training changes."""
        raise NotImplementedError


def versions_of(parts: Iterable[Any]) -> tuple[Any, ...]:
    """Torch's counts of how often tensors were written to, those of sources, specs and modules among `parts` too.

    With the settings of a spec's score and normalizer, which may be set to others.
    """
    found: list[Any] = []
    for part in parts:
        if isinstance(part, Tensor):
            found.append(-1 if part.is_inference() or is_traced(part) else part._version)
        elif isinstance(part, WeightSource):
            found += part.versions()
        elif isinstance(part, Spec):
            found += versions_of([*part.score.parameters(), *part.normalizer.parameters()])
            state = versions_of([*tensors_of(part.score), *tensors_of(part.normalizer)])
            # which a call may change, as one does that counts itself: not held to be unwritten while it runs
            found += [("state", one) for one in (*state, *settings_of(part.score), *settings_of(part.normalizer))]
            if part.bias is not None:
                found += [*versions_of(part.bias.tensors()), *(("state", one) for one in settings_in(part.bias))]
            found += versions_of(tensors_in(part.mask))
    return tuple(found)


def tensors_in(mask: Any) -> Iterator[Tensor]:
    """The tensors of a mask, and of the masks that it combines."""
    if isinstance(mask, Tensor):
        yield mask
    elif isinstance(mask, Mask | list | tuple):
        for part in list(vars(mask).values()) if isinstance(mask, Mask) else mask:
            yield from tensors_in(part)


class GivenWeights(WeightSource):
    """Weights given as a tensor."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.like = weights.new_empty(0)
        self.row = prod(weights.shape[:-2]) * weights.shape[-1]

    def weigh(self, rows: Tensor | None) -> Tensor:
        return self.weights if rows is None else self.weights[..., rows, :]

    def select(self, index: Index) -> WeightSource:
        return GivenWeights(self.weights[index])

    def frozen(self) -> WeightSource:
        return GivenWeights(self.weights.detach())


def of_keys(part: Tensor, batch: tuple[int, ...], index: Index) -> Tensor:
    """Keys, or values, of some of the batch axes of a map; grouped heads are repeated after they are selected."""
    if part.ndim < 4 or part.shape[-3] in (1, batch[-1]):
        return part.expand(*batch, *part.shape[-2:])[index]
    group = batch[-1] // part.shape[-3]
    part = part.expand(*batch[:-1], *part.shape[-3:])
    if len(index) < len(batch):
        return part[index].repeat_interleave(group, -3)
    head = index[-1]
    if isinstance(head, int):
        return part[(*index[:-1], head % batch[-1] // group)]
    return part[index[:-1]].repeat_interleave(group, -3)[..., head, :, :]


@dataclass(frozen=True, eq=False)
class ComputedWeights(WeightSource):
    """Queries, keys and a spec: rows are computed as the reference kernel does."""

    query: Tensor
    key: Tensor
    spec: Spec
    shape: tuple[int, ...]

    @classmethod
    def of(cls, query: Tensor, key: Tensor, spec: Spec) -> "ComputedWeights":
        """Of queries `[*batch, T, d_q]` and keys `[*batch, S, d_k]` that have been checked."""
        return cls(query, key, spec, (*batch_shape(query, share_heads(query, key)), query.shape[-2], key.shape[-2]))

    @property
    def like(self) -> Tensor:  # type: ignore[override]
        return self.query.new_empty(0, dtype=score_dtype(self.query, self.key))

    @property
    def row(self) -> int:  # type: ignore[override]
        return prod(self.shape[:-2]) * self.shape[-1]

    def select(self, index: Index) -> WeightSource:
        batch = self.shape[:-2]
        query = self.query.expand(*batch, *self.query.shape[-2:])[index]
        key = of_keys(self.key, batch, index)
        shape = (*query.shape[:-1], self.shape[-1])
        return ComputedWeights(query, key, self.spec.select(index, self.shape), shape)

    def frozen(self) -> WeightSource:
        return ComputedWeights(*freeze(self.query.detach(), self.key.detach(), self.spec), self.shape)

    def weigh(self, rows: Tensor | None) -> Tensor:
        return self._normalized(rows)[0]

    def reweight(self, rows: Tensor, columns: Tensor, numbers: Tensor) -> Tensor | None:
        """Weights of some queries and some keys alone, from the row numbers `[*batch, T]`; None: it cannot."""
        spec, dtype = self.spec, self.like.dtype
        if not spec.normalizer.exact or spec.score.follows:  # which numbers its keys, and is called with all of them
            return None
        rows, columns = rows.to(self.like.device), columns.to(self.like.device)
        q = self.query[..., rows, :].to(dtype)
        k = share_heads(self.query, self.key[..., columns, :]).to(dtype)
        scores = as_scores(spec.score(q, k), q, k, type(spec.score).__name__)
        if spec.bias is not None:
            scores = scores + spec.bias.tile(rows, columns, self.shape).to(dtype)
        weights = spec.normalizer.reweight(
            scores.expand(*self.shape[:-2], *scores.shape[-2:]), numbers[..., rows, None]
        )
        if weights is None or spec.mask is None:
            return weights
        return weights.masked_fill(~spec.mask.tile(rows, columns, self.shape), 0)

    def blocks(self, size: int, t: int, room: list[Tensor] | None = None) -> Iterator[RowBlock]:
        product = self._product()
        if product is not None:
            yield from self._softmax_blocks(*product, size, room)
            return
        for number, rows in enumerate(torch.arange(t, device=self.like.device).split(size)):
            yield RowBlock(number * size, *self._normalized(rows))

    @cached_property
    def _poisoned(self) -> bool:
        return self.spec.mask is not None and is_poisoned(self.query, self.key)

    def _normalized(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights and row numbers."""
        dtype, spec, shape = self.like.dtype, self.spec, self.shape
        q = (self.query if rows is None else self.query[..., rows, :]).to(dtype)
        k = share_heads(self.query, self.key).to(dtype)
        allowed = spec.allowed(rows, shape, self.like.device)
        # as in the reference kernel: keys forbidden to all these rows become 0 first
        if spec.mask is not None and are_hidden(q, k):

            def weights(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
                scores = spec.scores(q, k, rows, shape)
                return spec.normalize(scores, allowed.expand_as(scores))

            return isolated(weights, (q, k), lambda flags: rows_of(allowed, flags, (q.shape[-2], k.shape[-2])))
        if spec.mask is not None and self._poisoned:
            rows = torch.arange(shape[-2], device=self.like.device) if rows is None else rows
            seen = allowed.expand(*shape[:-2], len(rows), shape[-1])
            q = q.masked_fill(~seen.any(-1, keepdim=True), 0)
            if len(rows) > 1:
                parts = zip(*(self._normalized(row) for row in rows.split(1)), strict=True)
                return tuple(torch.cat(part, dim) for part, dim in zip(parts, (-2, -1), strict=True))  # type: ignore[return-value]
            k = torch.where(seen.transpose(-2, -1), k, 0)
        scores = spec.scores(q, k, rows, shape)
        return spec.normalize(scores, allowed.expand_as(scores))

    def _product(self) -> tuple[Tensor, Tensor] | None:
        """Queries and keys where the map is a plain softmax of their products and no gradient is needed; else None."""
        spec = self.spec
        plain = is_product(spec.score) and spec.score.softcap is None and type(spec.normalizer) is Softmax
        if not plain or not prod(self.shape) or is_traced(self.query) or self._poisoned:
            return None
        dtype = self.like.dtype
        q, k = spec.score.as_dot(self.query.to(dtype), share_heads(self.query, self.key).to(dtype))  # type: ignore[operator]
        check_widths(q, k)
        if goes_forward(q, k, also=lambda: spec.corner(self.shape, q.device)):
            return None
        learned = spec.bias is not None and spec.bias.is_learned()
        return None if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or learned) else (q, k)

    def _softmax_blocks(self, query: Tensor, key: Tensor, size: int, room: list[Tensor] | None) -> Iterator[RowBlock]:
        """Blocks in two buffers: fresh memory for every block would take longer than the work."""
        spec, shape = self.spec, self.shape
        lowest = torch.finfo(query.dtype).min
        # a product may be beyond all numbers; then a row may have nothing but -inf where it may attend
        largest = [float(part.detach().abs().max()) if part.numel() else 0.0 for part in (query, key)]
        large = not prod(largest) * query.shape[-1] < -lowest
        most = prod(shape[:-2]) * min(size, shape[-2]) * shape[-1]
        buffers = room if room else [self.like.new_empty(most) for _ in range(2)]
        if room is not None:
            room[:] = buffers
        for start, ((first, end), (left, right)) in zip(range(0, shape[-2], size), self._seen(size), strict=True):
            rows = torch.arange(start, min(start + size, shape[-2]), device=query.device)
            part = (*shape[:-2], len(rows), end - first)
            scores, weights = (buffer[: prod(part)].view(part) for buffer in buffers)
            torch.matmul(query[..., start : start + size, :], key[..., first:end, :].transpose(-2, -1), out=scores)
            if spec.bias is not None:
                columns = torch.arange(first, end, device=query.device)
                scores.add_(spec.bias.tile(rows, columns, shape)).clamp_min_(lowest)
            if spec.mask is not None and left < right:
                columns = torch.arange(left, right, device=query.device)
                hidden = ~spec.mask.tile(rows, columns, shape)
                scores[..., left - first : right - first].masked_fill_(hidden, lowest)
            torch.softmax(scores, -1, out=weights)
            # a row of nothing but -inf is dead, not NaN
            overflown = large or bool(weights[..., 0].isnan().any())
            if overflown:
                torch.softmax(scores.clamp_min_(lowest), -1, out=weights)
            if overflown or spec.bias is not None or (left, right) == (first, end):
                dead = scores.amax(-1, keepdim=True) == lowest
                if spec.bias is not None and bool(dead.any()):  # or living: a bias of finfo.min on every key
                    equal = self._finite(query, key, rows, (first, end))
                    number = equal.sum(-1, keepdim=True)
                    weights.copy_(torch.where(dead, equal / number.clamp(min=1), weights))
                    dead = dead & (number == 0)
                weights.masked_fill_(dead, 0)
            yield RowBlock(start, weights, scores=scores, first=first)

    def _finite(self, query: Tensor, key: Tensor, rows: Tensor, keys: Span) -> Tensor:
        """Which keys some queries may attend to, with a score that is not -inf, `[*batch, t, k]`."""
        spec, columns = self.spec, torch.arange(*keys, device=query.device)
        assert spec.bias is not None
        scores = query[..., rows, :] @ key[..., keys[0] : keys[1], :].transpose(-2, -1)
        finite = scores + spec.bias.tile(rows, columns, self.shape) > -torch.inf
        return finite if spec.mask is None else finite & spec.mask.tile(rows, columns, self.shape)

    def _seen(self, size: int) -> list[tuple[Span, Span]]:
        """For each `size` queries the keys that any of them may attend to, and among these the ones that not all may.

        Both are from the first to the last; of the former there is at least one.
        """
        t, s = self.shape[-2:]
        if self.spec.mask is None:
            return [((0, s), (0, 0))] * ceil(t / size)
        grid = TileGrid.of(self.shape, size, WIDTH, self.query.device)
        tiles = len(grid.rows) - 1, len(grid.columns) - 1
        coverage = self.spec.mask.coverage(grid)
        some, collect = (
            one.expand(*one.shape[:-2], *tiles).reshape(-1, *tiles) for one in (coverage.some, coverage.full)
        )
        found = []
        for seen, full in zip(some.any(0), collect.all(0), strict=True):
            first, end = _ends(seen) or (0, 1)
            left, right = _ends(~full[first:end]) or (0, 0)
            keys = [min(s, tile * WIDTH) for tile in (first, end, first + left, first + right)]
            found.append(((keys[0], keys[1]), (keys[2], keys[3])))
        return found


def _ends(used: Tensor) -> tuple[int, int] | None:
    """From the first used place to behind the last."""
    positions = used.nonzero().flatten().tolist()
    return (positions[0], positions[-1] + 1) if positions else None


class Mean(WeightSource):
    """The mean over the heads (axis -3)."""

    def __init__(self, source: WeightSource) -> None:
        self.source, self.like, self.row = source, source.like, source.row

    def weigh(self, rows: Tensor | None) -> Tensor:
        return self.source.weigh(rows).mean(-3)

    def select(self, index: Index) -> WeightSource:
        return Mean(self.source.select(index))

    def frozen(self) -> WeightSource:
        return Mean(self.source.frozen())


class Scaled(WeightSource):
    """Every key's weights times a number `[*batch, S]`."""

    def __init__(self, source: WeightSource, factor: Tensor) -> None:
        self.source, self.like, self.row = source, source.like, source.row
        self.factor = factor

    def weigh(self, rows: Tensor | None) -> Tensor:
        return self.source.weigh(rows) * self.factor[..., None, :]

    def select(self, index: Index) -> WeightSource:
        return Scaled(self.source.select(index), self.factor[index])

    def frozen(self) -> WeightSource:
        return Scaled(self.source.frozen(), self.factor.detach())


class Through(WeightSource):
    """A map's weights times a matrix `[..., S, N]`.

    Attributes:
        whole: the map's own shape `(*batch, T, S)`.
    """

    def __init__(self, source: WeightSource, matrix: Tensor, whole: tuple[int, ...]) -> None:
        self.source, self.like, self.whole = source, source.like, whole
        self.matrix = matrix.to(source.like.dtype)
        self.row = source.row + prod(whole[:-2]) * matrix.shape[-1]

    def weigh(self, rows: Tensor | None) -> Tensor:
        return self.source.weigh(rows) @ self.matrix

    def select(self, index: Index) -> WeightSource:
        matrix = self.matrix.expand(*self.whole[:-2], *self.matrix.shape[-2:])[index]
        own = torch.empty(self.whole[:-2], device="meta")[index].shape
        return Through(self.source.select(index), matrix, (*own, *self.whole[-2:]))

    def frozen(self) -> WeightSource:
        return Through(self.source.frozen(), self.matrix.detach(), self.whole)


class Cropped(WeightSource):
    """The first queries, and some keys that follow each other, of another source; what the other keys have is left out.

    Attributes:
        queries: how many.
        first, end: the keys.
    """

    def __init__(self, source: WeightSource, queries: int, first: int, end: int) -> None:
        self.source, self.queries, self.first, self.end = source, queries, first, end
        self.like, self.row = source.like, source.row

    def weigh(self, rows: Tensor | None) -> Tensor:
        rows = torch.arange(self.queries, device=self.like.device) if rows is None else rows
        return self.source.weigh(rows)[..., self.first : self.end]

    def select(self, index: Index) -> WeightSource:
        return Cropped(self.source.select(index), self.queries, self.first, self.end)

    def frozen(self) -> WeightSource:
        return Cropped(self.source.frozen(), self.queries, self.first, self.end)
