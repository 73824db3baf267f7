"""AttentionMap: what every query looks at, computed when it is asked for and never before.

A map keeps queries, keys and the spec (or weights that were given), and answers for any row, tile
or statistic by computing blocks of whole rows. It is exact: the same numbers as the reference kernel.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from regard.attention.biases import BiasLike
from regard.attention.kernels.reference import is_poisoned
from regard.attention.masks import MaskLike
from regard.attention.normalizers import NormalizerLike
from regard.attention.scores import ScoreLike
from regard.attention.spec import Spec, make_spec
from regard.errors import BundleError, ChoiceError, ShapeError
from regard.shapes import batch_shape, check, share_heads
from regard.storage import write_tensors

LARGEST = 256 * 2**20  # bytes that full() gives without being forced
BLOCK = 16 * 2**20  # bytes of weights computed at a time

Index = slice | Tensor | list[int]


class AttentionMap:
    """Weights α `[*batch, T, S]` after the normaliser and before dropout, float32 (float64 for float64 inputs).

    Made by `regard.attention_map`, by models, or from given weights by `from_weights`.

    Attributes:
        shape: `(*batch, T, S)`.
        query_tokens, key_tokens: names of the rows and columns, where known.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        weigh: Callable[[Tensor], Tensor],
        *,
        query_tokens: list[str] | None = None,
        key_tokens: list[str] | None = None,
    ) -> None:
        self.shape = torch.Size(shape)
        self._weigh = weigh  # row indices [t] -> weights [*batch, t, S]
        self.query_tokens = query_tokens
        self.key_tokens = key_tokens

    @classmethod
    def from_weights(cls, weights: Float[Tensor, "..."], **tokens: list[str] | None) -> "AttentionMap":
        """A map of given weights `[*batch, T, S]`."""
        if weights.ndim < 2:
            raise ShapeError(f"weights need at least 2 axes [T, S]; got shape {list(weights.shape)}")
        wide = weights if weights.dtype == torch.float64 else weights.float()
        return cls(wide.shape, lambda rows: wide[..., rows, :], **tokens)

    @classmethod
    def from_spec(cls, query: Tensor, key: Tensor, spec: Spec, **tokens: list[str] | None) -> "AttentionMap":
        """A map of queries `[*batch, T, d_q]` and keys `[*batch, S, d_k]` under a spec."""
        check(query, key)
        key = share_heads(query, key)
        shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
        wide = torch.float64 if torch.float64 in (query.dtype, key.dtype) else torch.float32

        def weigh(rows: Tensor) -> Tensor:
            q, k = query[..., rows, :].to(wide), key.to(wide)
            allowed = spec.allowed(rows, shape)
            # as in the reference kernel: what nobody of these rows may see becomes harmless first
            seen = allowed.expand(*shape[:-2], len(rows), shape[-1])
            q = q.masked_fill(~seen.any(-1, keepdim=True), 0)
            if spec.mask is not None and is_poisoned(q, k):
                if len(rows) > 1:
                    return torch.cat([weigh(row) for row in rows.split(1)], -2)
                k = torch.where(seen.transpose(-2, -1), k, 0)
            scores = spec.scores(q, k, rows, shape)
            weights: Tensor = spec.normalizer(scores, allowed.expand_as(scores))[0]
            return weights

        return cls(shape, weigh, **tokens)

    def full(self, force: bool = False) -> Tensor:
        """The whole matrix `[*batch, T, S]`.

        Raises:
            ShapeError: it is larger than 256 MiB and `force` is not set.
        """
        size = 4 * prod(self.shape)
        if size > LARGEST and not force:
            raise ShapeError(
                f"the whole map {list(self.shape)} takes {size / 2**20:,.0f} MiB: ask for tile(), pool() or top(), "
                "or say full(force=True)"
            )
        return self._weigh(torch.arange(self.shape[-2]))

    def tile(self, rows: Index, columns: Index) -> Tensor:
        """The exact weights of some queries and some keys `[*batch, len(rows), len(columns)]`."""
        chosen = [_indices(index, n) for index, n in ((rows, self.shape[-2]), (columns, self.shape[-1]))]
        return self._weigh(chosen[0])[..., chosen[1]]

    def pool(self, rows: int, columns: int, reduce: str = "max") -> Tensor:
        """The map in `rows` × `columns` cells of ceil(T/rows) × ceil(S/columns) weights; the last may be short.

        Args:
            rows: number of cells along the queries, at most; 1 or more.
            columns: number of cells along the keys, at most; 1 or more.
            reduce: "max", "mean" or "sum" over each cell.
        """
        if reduce not in _REDUCE:
            raise ChoiceError(f"unknown reduce {reduce!r}: expected one of {', '.join(map(repr, _REDUCE))}")
        if rows < 1 or columns < 1:
            raise ShapeError(f"pool needs at least 1 × 1 cells; got {rows} × {columns}")
        height, width = (max(1, ceil(n / cells)) for n, cells in zip(self.shape[-2:], (rows, columns), strict=True))
        bands = []
        for band in torch.arange(self.shape[-2]).split(height):
            weights = self._weigh(band)
            bands.append(torch.stack([_REDUCE[reduce](cell) for cell in weights.split(width, -1)], -1))
        return torch.stack(bands, -2)

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest weights of each row and their keys, both `[*batch, T, k]`; padded with (0, -1).

        Ties go to the lower index.
        """
        if k < 1:
            raise ShapeError(f"top needs k of at least 1; got {k}")
        weights, keys = zip(*(w.sort(dim=-1, descending=True, stable=True) for w in self._blocks()), strict=True)
        best, where = torch.cat(weights, -2)[..., :k], torch.cat(keys, -2)[..., :k]
        where = where.masked_fill(best == 0, -1)
        short = k - best.shape[-1]
        return torch.nn.functional.pad(best, (0, short)), torch.nn.functional.pad(where, (0, short), value=-1)

    def entropy(self) -> Tensor:
        """H_i = -Σ_j p_ij ln p_ij in nats `[*batch, T]`, of the row divided by its sum; 0 for a dead row."""
        return torch.cat([_entropy(weights) for weights in self._blocks()], -1)

    def received(self) -> Tensor:
        """Σ_i α_ij `[*batch, S]`: how much each key is looked at."""
        return torch.stack([weights.sum(-2) for weights in self._blocks()]).sum(0)

    def argmax(self) -> Tensor:
        """The key each query looks at most `[*batch, T]`, the lower index on a tie; -1 for a dead row."""
        return self.top(1)[1].squeeze(-1)

    def numpy(self) -> NDArray[Any]:
        """`full()` as a numpy array."""
        return self.full().detach().cpu().numpy()

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the map, one panel per head (the first 16 of the leading axes); write it where `path` says.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.

        Returns:
            the matplotlib figure.
        """
        # drawing lives upstairs and is looked up when it is asked for: the heart does not depend on it
        return import_module("regard.explore.plots").draw_map(self, path)

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors."""
        write_tensors(Path(path), {"weights": self.full()})

    @classmethod
    def load(cls, path: str | Path) -> "AttentionMap":
        """Read what `save` wrote.

        Raises:
            BundleError: the file is missing or is not a saved map.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                return cls.from_weights(file.get_tensor("weights"))
        except Exception as error:  # safetensors raises bare OSError and its own error types
            raise BundleError(f"{path} is not a saved attention map: {error}") from error

    def select(self, *index: int | slice) -> "AttentionMap":
        """The map of some of the leading batch axes."""
        weigh, here = self._weigh, (*index, ...)
        shape = torch.empty(self.shape[:-2], device="meta")[index].shape
        return AttentionMap(
            (*shape, *self.shape[-2:]),
            lambda rows: weigh(rows)[here],
            query_tokens=self.query_tokens,
            key_tokens=self.key_tokens,
        )

    def _blocks(self) -> Iterator[Tensor]:
        row = max(1, 4 * prod(self.shape) // max(1, self.shape[-2]))
        for rows in torch.arange(self.shape[-2]).split(max(1, BLOCK // row)):
            yield self._weigh(rows)


def attention_map(
    query: Float[Tensor, "..."],
    key: Float[Tensor, "..."],
    *,
    score: ScoreLike = "scaled_dot",
    normalizer: NormalizerLike = "softmax",
    mask: MaskLike | None = None,
    bias: BiasLike | None = None,
) -> AttentionMap:
    """The map of the attention that `attend` computes for the same arguments: exact, lazy, differentiable.

    Raises:
        ShapeError, ChoiceError: as `attend`.
    """
    return AttentionMap.from_spec(query, key, make_spec(score, normalizer, mask, bias))


_REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda cell: cell.amax((-2, -1)),
    "mean": lambda cell: cell.mean((-2, -1)),
    "sum": lambda cell: cell.sum((-2, -1)),
}


def _entropy(weights: Tensor) -> Tensor:
    total = weights.sum(-1, keepdim=True)
    share = weights / total.masked_fill(total == 0, 1)
    entropy: Tensor = torch.special.entr(share).sum(-1)
    return entropy


def _indices(index: Index, size: int) -> Tensor:
    if isinstance(index, slice):
        return torch.arange(size)[index]
    indices = torch.as_tensor(index, dtype=torch.long)
    if indices.numel() and (int(indices.min()) < -size or int(indices.max()) >= size):
        raise ShapeError(f"tile: index {indices.tolist()} goes outside an axis of {size}")
    return indices % size if size else indices
