"""AttentionMap: what every query looks at, computed when it is asked for and never before.

A map keeps queries, keys, the spec and one number per row (or weights that were given), and answers for any
row, tile or statistic by computing blocks. It is exact: the same numbers as the reference kernel.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from copy import copy, deepcopy
from dataclasses import dataclass, fields, replace
from functools import wraps
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from regard.arguments import check_arguments
from regard.attention.biases import BiasLike
from regard.attention.maps.panels import Rows, draw_map
from regard.attention.maps.products import Product, fit_vector, pulled, pushed
from regard.attention.maps.saved import load_map, save_map
from regard.attention.maps.sources import (
    ComputedWeights,
    Cropped,
    GivenWeights,
    Mean,
    RowBlock,
    Scaled,
    Through,
    WeightSource,
    of_keys,
)
from regard.attention.maps.statistics import Pool, Summary, statistics_of
from regard.attention.masks import MaskLike
from regard.attention.normalizers import NormalizerLike
from regard.attention.scores import ScoreLike
from regard.attention.spec import Spec, make_spec
from regard.attention.tracing import goes_forward, is_traced, without_autocast
from regard.errors import BundleError, ConfigError, RegardError, ShapeError, shown
from regard.shapes import check, check_tensors, described, fits
from regard.untrusted import first_line

LARGE_NUMBER = 1e8  # of a row: weights that are computed from a larger one lose more than a millionth
LARGEST = 256 * 2**20  # bytes that full() gives without being forced
BLOCK = 16 * 2**20  # bytes of weights computed at a time, at most
ROWS = 256  # rows at a time, where they fit: fewer are slow, and more leave the caches
OVERVIEW = Pool(256, 256)  # found with the first statistic, where it is smaller than the map
KEPT = 16 * 2**20  # bytes of overview that are kept
NEGATIVE = "this map has negative weights, as low-rank attention's has"

Index = slice | Tensor | list[int]
Tokens = list[str] | None
P = ParamSpec("P")
R = TypeVar("R")


def exactly(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Autocast ends at a map's door, as it does at `attend`'s."""

    @wraps(method)
    def outside(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with without_autocast(self.source.like.device.type):
            return method(self, *args, **kwargs)

    return outside


def _are_coarse(numbers: Tensor) -> bool:
    """Whether some row numbers are so large that weights computed from them would have no digit right."""
    return bool((numbers.isfinite() & (numbers.abs() > LARGE_NUMBER)).any())


def _check_values_are_known(like: Tensor) -> None:
    if is_traced(like):
        raise RegardError(
            "statistics, draws, figures and files of a map depend on the values of its weights, which a torch.func "
            "transform, a graph or the meta device hides: take full() or tile() there, or ask outside"
        )


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a map comes from, for what needs more of the model than queries and keys (`regard.why`).

    Attributes:
        site: of which attention it is.
        run: gives the forward pass in which that attention can be computed again; the map's rows are the last of it.
        heads: index of the head of each of the map's batch axes.
    """

    site: str
    run: Callable[[], Any]
    heads: Tensor


class AttentionMap:
    """Weights α `[*batch, T, S]` after the normalizer and before dropout, float32 (float64 for float64 inputs).

    Made by `regard.attention_map`, by `regard.observe`, by models, or from given weights by `from_weights`.
    The first statistic computes entropy, received, argmax and row numbers in one pass and keeps them
    (unless a gradient is wanted).

    Attributes:
        shape: `(*batch, T, S)`.
        query_tokens, key_tokens: names of the rows and columns, where known.
        value: the values `[*batch, S, d_v]`, where they were kept: weights times values are the attention's output.
            Heads may share values as they may in `attend`. Files (`save`) do not have them.
        origin: the model's site and the input, for the maps of a result and for selections of them.
        site: the name of the attention, where known; figures show it.
        title: the model and the text, where known; the title of figures.
    """

    def __init__(
        self, shape: Sequence[int], source: "WeightSource", *, query_tokens: Tokens = None, key_tokens: Tokens = None
    ) -> None:
        self.shape = torch.Size(shape)
        self.source = source
        self.query_tokens = query_tokens
        self.key_tokens = key_tokens
        self.value: Tensor | None = None
        self.origin: Origin | None = None
        self.site = ""
        self.title = ""
        self._of_heads = False
        # with and without torch.is_grad_enabled()
        self._of: tuple[Any, ...] | None = None
        self._counting = False  # whether a pass has changed what it is computed of
        self._found: dict[bool, Summary] = {}
        self._pools: dict[tuple[bool, Pool], Tensor] = {}

    @classmethod
    @check_arguments
    def from_weights(cls, weights: Float[Tensor, "..."], **tokens: Tokens) -> "AttentionMap":
        """A map of given weights `[*batch, T, S]`."""
        check_tensors(weights=weights)
        if weights.ndim < 2:
            raise ShapeError(f"weights need at least 2 axes [T, S]; got shape {list(weights.shape)}")
        wide = weights if weights.dtype == torch.float64 else weights.float()
        return cls(wide.shape, GivenWeights(wide), **tokens)._named_throughout()

    @classmethod
    def from_spec(cls, query: Tensor, key: Tensor, spec: Spec, **tokens: Tokens) -> "AttentionMap":
        """A map of queries `[*batch, T, d_q]` and keys `[*batch, S, d_k]` under a spec."""
        check(query, key)
        spec.check_data(query)
        source = ComputedWeights.of(query, key, spec)
        return cls(source.shape, source, **tokens)._named_throughout()

    @exactly
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
        if self.source.row * self.shape[-2] == prod(self.shape):
            return self.source.weigh(None)
        return torch.cat([block.weights for block in self._blocks(self.source)], -2)  # made of more weights than it has

    @exactly
    def tile(self, rows: Index, columns: Index) -> Tensor:
        """The exact weights of some queries and some keys `[*batch, len(rows), len(columns)]`."""
        device = self.source.like.device
        chosen = [_indices(index, n, device) for index, n in zip((rows, columns), self.shape[-2:], strict=True)]
        found = self._known_summary()
        source = self.source
        numbers = None if found is None else found.numbers
        if numbers is not None and isinstance(source, ComputedWeights) and not _are_coarse(numbers[..., chosen[0]]):
            tile = source.reweight(chosen[0], chosen[1], numbers)
            if tile is not None:
                return tile
        parts = [
            self.source.weigh(part)[..., chosen[1]] for part in chosen[0].split(self._rows_of_a_block(self.source))
        ]
        return torch.cat(parts, -2)

    @check_arguments
    def column(self, j: int) -> Tensor:
        """How much every query looks at key j `[*batch, T]`."""
        if isinstance(self.source, ComputedWeights):
            self._kept()  # a pass as long as this one's, and all later ones are short
        return self.tile(slice(None), [j])[..., 0]

    @check_arguments
    def pool(self, rows: int, columns: int, reduce: str = "max") -> Tensor:
        """The map in `rows` × `columns` cells of ceil(T/rows) × ceil(S/columns) weights; the last may be short.

        Args:
            rows: number of cells along the queries, at most; 1 or more.
            columns: number of cells along the keys, at most; 1 or more.
            reduce: "max", "mean" or "sum" over each cell.
        """
        pool = Pool(rows, columns, reduce)
        self._known_summary()  # forgets those of other numbers
        pooled = self._pools.get((torch.is_grad_enabled(), pool))
        if pooled is None:
            pooled = self._statistics(pool).pooled
        assert pooled is not None
        return pooled

    @check_arguments
    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest weights of each row and their keys, both `[*batch, T, k]`; padded with (0, -1).

        Ties go to the lower index.
        """
        top = self._statistics(top=k).top
        assert top is not None
        return top

    @check_arguments
    def summary(self, pool: tuple[int, int] | None = None, top: int | None = None, reduce: str = "max") -> Summary:
        """Everything in one pass: entropy, received, argmax, row sums, and what is asked for besides.

        Args:
            pool: (rows, columns) of a pooled view.
            top: k of the largest weights of each row.
            reduce: of the pooled view, "max", "mean" or "sum".
        """
        found = self._statistics(Pool(*pool, reduce) if pool else None, top)
        own: dict[str, Any] = {name: value.clone() for name, value in vars(found).items() if isinstance(value, Tensor)}
        best = None if found.top is None else (found.top[0].clone(), found.top[1].clone())
        return replace(found, **own, top=best)

    def entropy(self) -> Tensor:
        """H_i = -Σ_j p_ij ln p_ij in nats `[*batch, T]`, of the row divided by its sum; 0 for a dead row.

        Raises:
            ShapeError: the map has negative weights, which have no entropy.
        """
        found = self._kept()
        if found.negative:
            raise ShapeError(f"{NEGATIVE}: they have no entropy")
        return found.entropy.clone()

    def received(self) -> Tensor:
        """Σ_i α_ij `[*batch, S]`: how much each key is looked at."""
        return self._kept().received.clone()

    def argmax(self) -> Tensor:
        """The key each query looks at most `[*batch, T]`, the lower index on a tie; -1 for a dead row."""
        return self._kept().argmax.clone()

    @exactly
    def pull(self, weights: Tensor) -> Tensor:
        """wᵀA: Σ_i w_i α_ij `[*batch, S]`, what reaches the keys when query i counts w_i; differentiable.

        Computed block by block, also in the backward pass: never T × S.

        Args:
            weights: `[*batch, T]`, or `[T]` for all batch axes.

        Raises:
            ShapeError: a size that is not the map's.
        """
        return self._times(pulled, weights, self.shape[-2], self.shape[-1], "queries")

    @exactly
    def push(self, weights: Tensor) -> Tensor:
        """A·w: Σ_j α_ij w_j `[*batch, T]`, what the queries collect when key j holds w_j; differentiable.

        Computed block by block, also in the backward pass: never T × S.

        Args:
            weights: `[*batch, S]`, or `[S]` for all batch axes.

        Raises:
            ShapeError: a size that is not the map's.
        """
        return self._times(pushed, weights, self.shape[-1], self.shape[-2], "keys")

    @exactly
    def distance(self) -> Tensor:
        """Weight by how far the key is from the query: `[*batch, T + S - 1]`, summed over the queries.

        Entry n is the weight on keys that stand n - (S - 1) places after the query's own place, where query i
        stands at i + S - T (the last query at the last key), as in the masks.
        """
        t, s = self.shape[-2:]  # a block of n rows is laid out n + S wide
        parts = [_distance(one.blocks(min(ROWS, self._rows_of_a_block(one)), t), t, s) for one in self._entries()]
        profile: Tensor = self._join(parts)
        return profile

    @exactly
    @check_arguments
    def mass(self, cells: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Σ_j α_ij over chosen keys j `[*batch, n, T]`, for n sets of cells; block by block, never T × S.

        Args:
            cells: which cells are in each set, bool `[n, t, k]`, of some queries `[t]` and some keys `[k]` (indices on
                the CPU). It is asked once for each block; a key of which it is not asked has no weight.
        """
        return torch.cat([_mass(block, cells) for block in self._blocks(self.source)], -1)

    @exactly
    def sample(self) -> tuple[Tensor, Tensor]:
        """One key drawn for every query, and the logarithm of its share: hard attention's draw.

        Returns:
            indices `[*batch, T]`, -1 for a dead row, and ln(α_ij / Σ_j' α_ij') of the drawn keys `[*batch, T]`,
            0 for a dead row; differentiable, for REINFORCE (Xu et al. 2015, section 4.1).

        Raises:
            ShapeError: the map has negative weights, which are no probabilities, or some that are infinite or NaN.
        """
        _check_values_are_known(self.source.like)
        drawn, logs = self._join([_sample(self._blocks(source)) for source in self._entries()])
        return drawn, logs

    @exactly
    def norms(self, value: Tensor, output_weight: Tensor) -> "AttentionMap":
        """‖α_ij v_j W_O‖, what query i really takes from key j (Kobayashi et al. 2020, section 3).

        Args:
            value: `[*batch, S, d_v]`, by heads (grouped heads are repeated).
            output_weight: W_O, `[heads, d_v, d]`, or a linear layer's `[d, heads · d_v]`.

        Raises:
            ShapeError: sizes that do not fit.
        """
        heads = self.shape[-3] if len(self.shape) > 2 else 1
        if output_weight.ndim == 2 and output_weight.shape[1] == heads * value.shape[-1]:
            output_weight = output_weight.T.unflatten(0, (heads, value.shape[-1]))
        if output_weight.ndim != 3 or output_weight.shape[:2] != (heads, value.shape[-1]):
            raise ShapeError(
                f"output_weight needs shape [heads, d_v, d] = [{heads}, {value.shape[-1]}, d] or [d, heads · d_v]; "
                f"got {list(output_weight.shape)}"
            )
        if value.shape[-2] != self.shape[-1]:
            raise ShapeError(f"value has {value.shape[-2]} positions on axis -2 and the map has {self.shape[-1]} keys")
        self._check_batch(value)
        value, output_weight = value.to(self.source.like.dtype), output_weight.to(self.source.like.dtype)
        if len(self.shape) == 2:
            length = (value @ output_weight[0]).norm(dim=-1)
        else:
            if value.ndim > 2 and value.shape[-3] not in (1, heads):
                value = value.repeat_interleave(heads // value.shape[-3], -3)
            length = (value @ output_weight).norm(dim=-1)
        length = length.to(self.source.like.dtype)
        length = length.expand(*self.shape[:-2], self.shape[-1])
        return self._derived(self.shape, Scaled(self.source, length))

    def select(self, *index: int | slice) -> "AttentionMap":
        """The map of some of the leading batch axes: `select(0, 3)` is sentence 0, head 3."""
        try:
            shape = torch.empty(self.shape[:-2], device="meta")[index].shape
        except (TypeError, ValueError) as error:
            raise ShapeError(
                f"select: an index must be a whole number, or a slice that goes forward; got {shown(index)}"
            ) from error
        source = self.source.select(index)
        found = AttentionMap(
            (*shape, *self.shape[-2:]), source, query_tokens=self.query_tokens, key_tokens=self.key_tokens
        )
        left = len(self.shape) - 2 - len(index)  # leading axes that no index names
        self._known(found, left > 0 or (left == 0 and bool(index) and isinstance(index[-1], slice)))
        if self.value is not None:
            found.value = of_keys(self.value, tuple(self.shape[:-2]), index)
        if self.origin is not None:
            found.origin = replace(self.origin, heads=self.origin.heads[index])
        return found

    def through(self, matrix: Tensor) -> "AttentionMap":
        """The map times a matrix `[..., S, N]`: where its keys are mixtures of N others, what reaches those.

        Raises:
            ShapeError: sizes that do not fit.
        """
        if matrix.ndim < 2 or matrix.shape[-2] != self.shape[-1]:
            raise ShapeError(f"matrix has shape {list(matrix.shape)}; expected {self.shape[-1]} rows, one for each key")
        if not fits(matrix.shape[:-2], self.shape[:-2]):
            raise ShapeError(
                f"matrix has batch axes {list(matrix.shape[:-2])} and the map has {list(self.shape[:-2])}: they "
                "must be equal or 1"
            )
        source = Through(self.source, matrix, self.shape)
        found = AttentionMap((*self.shape[:-1], matrix.shape[-1]), source, query_tokens=self.query_tokens)
        return self._known(found, same_heads=True)

    @check_arguments
    def crop(
        self, queries: int, first_key: int, end_key: int, query_tokens: Tokens = None, key_tokens: Tokens = None
    ) -> "AttentionMap":
        """The first queries and the keys `first_key` … `end_key - 1`, lazy; weights are not divided anew.

        What a padded batch keeps of one sentence: the keys that are left out are padding, whose weights are 0.
        """
        if not (0 <= queries <= self.shape[-2] and 0 <= first_key <= end_key <= self.shape[-1]):
            raise ShapeError(
                f"crop needs at most {self.shape[-2]} queries and keys within 0 … {self.shape[-1]}; "
                f"got {queries} and {first_key} … {end_key}"
            )
        whole = (queries, first_key, end_key) == (self.shape[-2], 0, self.shape[-1])
        source = self.source if whole else Cropped(self.source, queries, first_key, end_key)
        shape = (*self.shape[:-2], queries, end_key - first_key)
        found = AttentionMap(shape, source, query_tokens=query_tokens, key_tokens=key_tokens)
        found.value = None if self.value is None else self.value[..., first_key:end_key, :]
        return self._known(found, same_heads=True)

    def frozen(self) -> "AttentionMap":
        """The same map, detached: later updates of the model's parameters do not change it, and it has no gradient."""
        with torch.no_grad():
            source = self.source.frozen()
        return self._derived(self.shape, source).with_value(None if self.value is None else self.value.detach())

    def with_value(self, value: Tensor | None) -> "AttentionMap":
        """The same map, with what its weights are given to.

        Args:
            value: `[*batch, S, d_v]`; heads may share it.

        Raises:
            ShapeError: values of another number of keys.
        """
        if value is not None and (value.ndim < 2 or value.shape[-2] != self.shape[-1]):
            raise ShapeError(
                f"value needs {self.shape[-1]} positions on axis -2, one for each key; got shape {list(value.shape)}"
            )
        if value is not None:
            self._check_batch(value)
        found = self._derived(self.shape, self.source)
        found.value = value
        return found

    def _check_batch(self, value: Tensor) -> None:
        """Refuse values of other batch axes, or of a number of heads that does not divide the map's."""
        batch, own = value.shape[:-2][::-1], self.shape[:-2][::-1]
        fit = [
            n == 1 or n == size or (axis == 0 and n and size % n == 0)
            for axis, (n, size) in enumerate(zip(batch, own, strict=False))
        ]
        if len(batch) > len(own) or not all(fit):
            raise ShapeError(
                f"value has shape {list(value.shape)} and the map has {list(self.shape)}: batch axes must "
                "be equal or 1, and the heads may be fewer where they divide"
            )

    def mean_heads(self) -> "AttentionMap":
        """The mean over the heads (axis -3)."""
        if len(self.shape) < 3:
            raise ShapeError(f"mean_heads needs heads on axis -3; the map has shape {list(self.shape)}")
        return self._derived((*self.shape[:-3], *self.shape[-2:]), Mean(self.source))

    @classmethod
    @check_arguments
    def rollout(cls, maps: "Sequence[AttentionMap]", residual: float = 0.5) -> "AttentionMap":
        """Self-attention followed through the layers: Π_l (residual · I + (1 - residual) · mean over heads of α_l).

        Rows are divided by their sum after each layer. The first map is the lowest layer. That half of every
        state comes from the residual stream is an assumption (Abnar and Zuidema 2020, section 3).

        Args:
            maps: `[*batch, heads, N, N]` each.
            residual: the share of a state that stays where it is.

        Raises:
            ShapeError: maps that are not square or do not follow each other.
        """
        if not maps:
            raise ShapeError("rollout needs at least one map")
        if not 0 <= residual <= 1:
            raise ShapeError(f"residual must be a share, from 0 to 1; got {residual}")
        joint: Tensor | None = None
        if not isinstance(maps, Sequence) or not all(isinstance(one, AttentionMap) for one in maps):
            raise ShapeError(f"rollout needs a list of AttentionMaps; got {shown(maps)}")
        for number, one in enumerate(maps):
            n = maps[0].shape[-1]
            if len(one.shape) < 3 or one.shape[-2:] != (n, n) or one.shape[:-3] != maps[0].shape[:-3]:
                raise ShapeError(
                    f"rollout needs maps [*batch, heads, N, N] of one size; map {number} has shape {list(one.shape)}"
                )
            mixed = (1 - residual) * one.mean_heads().full() + residual * torch.eye(n, device=one.source.like.device)
            total = mixed.sum(-1, keepdim=True)
            mixed = mixed / total.masked_fill(total == 0, 1)
            with without_autocast(mixed.device.type):
                wide = mixed.dtype if joint is None else torch.promote_types(mixed.dtype, joint.dtype)
                joint = mixed if joint is None else mixed.to(wide) @ joint.to(wide)
        assert joint is not None
        return cls.from_weights(joint, query_tokens=maps[-1].query_tokens, key_tokens=maps[0].key_tokens)

    def numpy(self) -> NDArray[Any]:
        """`full()` as a numpy array."""
        _check_values_are_known(self.source.like)
        return self.full().detach().cpu().numpy()

    @check_arguments
    def plot(
        self, path: str | Path | None = None, *, rows: Rows | None = None, heads: int | Sequence[int] | None = None,
        title: str | None = None, theme: str = "light",
    ) -> Any:  # fmt: skip
        """Draw the map, one panel per head (the first 64 entries of the leading axes), all on one scale from 0.

        A map with more than 128 queries or keys is pooled to at most 256 × 256 cells, each the largest of its weights.

        Args:
            path: a .png, .svg or .pdf file; None only makes the figure.
            rows: which queries, as a slice or as indices; all by default.
            heads: which entries of axis -3; all by default.
            title: above the figure; by default what is known of the map: model, text and site.
            theme: "light" or "dark".

        Returns:
            the matplotlib figure.

        Raises:
            ShapeError: rows or heads that the map does not have.
            ChoiceError: there is no such theme.
            DataError: a file that cannot be drawn to.
        """
        _check_values_are_known(self.source.like)
        self._named_throughout()
        return draw_map(self, path, rows, heads, title, theme)

    @check_arguments
    def look(self, path: str | Path | None = None) -> Any:
        """The page of the map: every weight can be pointed at, at any length. It shows itself in a notebook.

        Args:
            path: an .html file to write, which needs no network; None only makes the page.

        Returns:
            the `regard.figures.page.Page`.
        """
        from regard.attention.maps.page import page_of_map

        _check_values_are_known(self.source.like)
        self._named_throughout()
        return page_of_map(self).written(path)

    @check_arguments
    def save(self, path: str | Path, half: bool = False) -> None:
        """Write the map as safetensors: queries, keys and row numbers where it is made of them, else the weights.

        Args:
            path: the file.
            half: vectors and weights as float16; answers then differ by about 1e-3 of a weight.

        Raises:
            ShapeError: weights of more than 256 MiB.
            DataError: the file cannot be written; an existing one is unchanged.
        """
        _check_values_are_known(self.source.like)
        self._named_throughout()
        full = lambda source, shape: AttentionMap(shape, source).full()  # noqa: E731
        save_map(self.source, self.shape, (self.query_tokens, self.key_tokens), full, Path(path), half)

    @classmethod
    @check_arguments
    def load(cls, path: str | Path) -> "AttentionMap":
        """Read what `save` wrote.

        Raises:
            BundleError: the file is missing or is not a saved map.
        """
        try:
            source, shape, (query_tokens, key_tokens) = load_map(Path(path))
            return cls(shape, source, query_tokens=query_tokens, key_tokens=key_tokens)._named_throughout()
        except KeyError as error:
            raise BundleError(f"{path} is not a saved attention map: it has no {shown(error.args[0])}") from error
        except Exception as error:  # safetensors raises bare OSError and its own error types
            raise BundleError(f"{path} is not a saved attention map: {first_line(error)}") from error

    def _named_throughout(self) -> "AttentionMap":
        """The map itself, whose tokens are as many as its rows and columns.

        Raises:
            ConfigError: they are no texts.
            ShapeError: they are not as many.
        """
        for name, tokens, axis in (("query_tokens", self.query_tokens, -2), ("key_tokens", self.key_tokens, -1)):
            if tokens is None:
                continue
            ordered = isinstance(tokens, Collection) and not isinstance(tokens, Set)  # an array is no Sequence
            if not ordered or not all(isinstance(token, str) for token in tokens):
                raise ConfigError(f"{name} must be a list of texts; got {shown(tokens)}")
            if not isinstance(tokens, list):
                setattr(self, name, [str(token) for token in tokens])
            if len(tokens) != self.shape[axis]:
                raise ShapeError(
                    f"{name}: expected {self.shape[axis]}, one for each place of axis {axis}; got {len(tokens)}"
                )
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "AttentionMap":
        made = memo[id(self)] = copy(self)
        try:
            made.__dict__ = deepcopy(self.__dict__, memo)
        except RuntimeError as error:
            if "deepcopy" not in str(error):
                raise
            raise RegardError(
                "a gradient goes through this map, and torch copies no tensor of a graph deeply: copy.copy keeps the "
                "gradient; copy map.frozen() for one without"
            ) from error
        return made

    def __repr__(self) -> str:
        return f"AttentionMap({' × '.join(map(str, self.shape))})"

    @property
    def has_heads(self) -> bool:
        """Whether axis -3 is known to be the heads: of `[batch, heads, T, S]`, and of what results and models give."""
        return len(self.shape) > 3 or self._of_heads or (self.origin is not None and len(self.shape) > 2)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        from regard.figures.files import as_png

        return as_png(self.plot())

    def _derived(self, shape: Sequence[int], source: WeightSource) -> "AttentionMap":
        found = AttentionMap(shape, source, query_tokens=self.query_tokens, key_tokens=self.key_tokens)
        return self._known(found, len(shape) == len(self.shape))

    def _known(self, found: "AttentionMap", same_heads: bool) -> "AttentionMap":
        """Another map of this attention, told what it is of."""
        found.site, found.title, found._of_heads = self.site, self.title, same_heads and self.has_heads
        return found

    @exactly
    def _statistics(self, pool: Pool | None = None, top: int | None = None) -> Summary:
        """One pass over all rows.

        Raises:
            RegardError: inside a torch.func transform.
        """
        _check_values_are_known(self.source.like)
        self._known_summary()  # what is kept is of the numbers as they are now
        before = self._of
        small = 4 * prod(self.shape[:-2]) * OVERVIEW.rows * OVERVIEW.columns <= KEPT
        aside = OVERVIEW if pool is None and small and max(self.shape[-2:]) > OVERVIEW.rows else pool
        shape = torch.Size(self.shape[-2:])
        room: list[Tensor] = []  # fresh memory for every entry would take longer than the work
        parts = [statistics_of(self._blocks(source, room), shape, aside, top) for source in self._entries()]
        found: Summary = self._join(parts)
        after = self.source.versions()
        counts, counted = ([one for one in versions or () if isinstance(one, int)] for versions in (before, after))
        if counts != counted or self._of is not before:  # a tensor was written to meanwhile, by another thread, say
            return found if aside is pool else replace(found, pooled=None)
        if after != before and not self._counting:  # a score may count its calls, or another thread have set a number
            self._counting = True
            return found if aside is pool else replace(found, pooled=None)
        self._of = after
        if not found.entropy.requires_grad and not goes_forward(found.entropy):
            mode = torch.is_grad_enabled()
            self._found[mode] = found
            if aside == OVERVIEW and found.pooled is not None:
                self._pools[mode, OVERVIEW] = found.pooled
        return found if aside is pool else replace(found, pooled=None)

    def _times(self, product: Product, weights: Tensor, size: int, other: int, axis: str) -> Tensor:
        """A product with a vector along an axis of `size`: one number for each place of the `other` axis."""
        vector = fit_vector(weights, size, self.shape[:-2], self.source.like, axis)
        outer = len(self._outer())
        room: list[Tensor] = []
        parts = [
            product(source, part, other, self._rows_of_a_block(source), room)
            for source, part in zip(self._entries(), vector.flatten(0, outer - 1) if outer else [vector], strict=True)
        ]
        joined: Tensor = self._join(parts)
        return joined

    def _kept(self) -> Summary:
        return self._known_summary() or self._statistics()

    def _known_summary(self) -> Summary | None:
        """The statistics that were computed, unless what they were computed of has changed since."""
        now = self.source.versions()
        if now != self._of:
            self._found, self._pools, self._of = {}, {}, now
        return self._found.get(torch.is_grad_enabled())

    def _blocks(self, source: WeightSource, room: list[Tensor] | None = None) -> Iterator[RowBlock]:
        return source.blocks(self._rows_of_a_block(source), self.shape[-2], room)

    def _rows_of_a_block(self, source: WeightSource) -> int:
        row = max(1, 4 * source.row)
        return max(1, BLOCK // 32 // row, min(ROWS, BLOCK // row))

    def _outer(self) -> tuple[int, ...]:
        """The leading batch axes that are taken one entry at a time, so that a block has enough rows."""
        batch = self.shape[:-2]
        whole = 4 * self.source.row * min(ROWS, self.shape[-2])
        for n in range(len(batch)):
            if whole // max(1, prod(batch[:n])) <= BLOCK // 4:  # more would leave the caches
                return tuple(batch[:n])
        return tuple(batch)

    def _entries(self) -> list[WeightSource]:
        """The source in parts, one for each entry of the outer axes."""
        outer = self._outer()
        return [self.source.select(index) for index in product(*map(range, outer))] if outer else [self.source]

    def _join(self, parts: Sequence[Any]) -> Any:
        """What the entries have answered, as the answer of all: tensors, tuples or records of them, or None."""
        first, outer = parts[0], self._outer()
        if not outer or first is None:
            return first
        if isinstance(first, bool):
            return any(parts)
        if isinstance(first, tuple):
            return tuple(self._join(part) for part in zip(*parts, strict=True))
        if isinstance(first, Tensor):
            return torch.stack(list(parts)).unflatten(0, outer)
        return replace(first, **{f.name: self._join([getattr(part, f.name) for part in parts]) for f in fields(first)})


class LazyMaps(Mapping[str, AttentionMap]):
    """{site: map}, each made when it is first asked for, and kept; as a pickle or a copy it is a dict.

    Args:
        sites: all sites, in order.
        make: the map of a site.
    """

    def __init__(self, sites: Iterable[str], make: Callable[[str], AttentionMap]) -> None:
        self._sites = sites if isinstance(sites, dict) else dict.fromkeys(sites)
        self._make = make
        self._made: dict[str, AttentionMap] = {}

    def __getitem__(self, site: str) -> AttentionMap:
        if site not in self._made:
            if site not in self._sites:
                raise KeyError(site)
            self._made.setdefault(site, self._make(site))  # two threads that ask at once get the same one
        return self._made[site]

    def __contains__(self, site: object) -> bool:
        return site in self._sites

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def changed(self, change: Callable[[str, AttentionMap], AttentionMap]) -> "LazyMaps":
        """The maps that `change` makes of the sites and maps."""
        return LazyMaps(self._sites, lambda site: change(site, self[site]))


def know_origin(
    maps: Mapping[str, AttentionMap], run: Callable[[], Any], title: str = ""
) -> Mapping[str, AttentionMap]:
    """The maps `[heads, T, S]` by site, told of the pass in which they can be computed again, and of what they are.

    Args:
        maps: they are changed themselves, except lazy ones, which are when they are made.
        run: gives the pass.
        title: of figures.
    """

    def told(site: str, one: AttentionMap) -> AttentionMap:
        one.origin = Origin(site, run, torch.arange(one.shape[-3]))
        one.site, one.title = site, title
        return one

    if isinstance(maps, LazyMaps):
        return maps.changed(told)
    for site, one in maps.items():
        told(site, one)
    return maps


@check_arguments
def attention_map(
    query: Float[Tensor, "..."],
    key: Float[Tensor, "..."],
    *,
    score: ScoreLike = "scaled_dot",
    normalizer: NormalizerLike = "softmax",
    mask: MaskLike | None = None,
    bias: BiasLike | None = None,
    query_tokens: Tokens = None,
    key_tokens: Tokens = None,
) -> AttentionMap:
    """The map of the attention that `attend` computes for the same arguments: exact, lazy, differentiable.

    Args:
        query_tokens, key_tokens: names of the rows and columns; the rest is as in `attend`.

    Raises:
        ShapeError, ChoiceError: as `attend`.
    """
    spec = make_spec(score, normalizer, mask, bias)
    return AttentionMap.from_spec(query, key, spec, query_tokens=query_tokens, key_tokens=key_tokens)


def _mass(block: RowBlock, cells: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    t, n = block.weights.shape[-2:]
    chosen = cells(torch.arange(block.start, block.start + t), torch.arange(block.first, block.first + n))
    if not isinstance(chosen, Tensor) or chosen.shape[1:] != (t, n):
        raise ShapeError(f"cells gave {described(chosen)}: it must give bool [n, {t}, {n}], True in the cells of a set")
    return torch.einsum("...tk,ntk->...nt", block.weights, chosen.to(block.weights))


def _distance(blocks: Iterable[RowBlock], t: int, s: int) -> Tensor:
    """Sums along the diagonals of rows that come in blocks `[*batch, T + S - 1]`."""
    profile: Tensor | None = None
    for block in blocks:
        n, keys = block.weights.shape[-2:]
        if not n:  # a map of no query
            return block.weights.new_zeros(*block.weights.shape[:-2], max(0, t + s - 1))
        # row i shifted by n - 1 - i: the diagonals of the block stand under each other
        skewed = pad(block.weights.flip(-2), (0, n)).flatten(-2)[..., : n * (keys + n - 1)]
        diagonals = skewed.unflatten(-1, (n, keys + n - 1)).sum(-2)
        placed = pad(diagonals, (t - block.start - n + block.first, block.start + s - block.first - keys))
        profile = placed if profile is None else profile + placed
    assert profile is not None  # there is always a block, if an empty one
    return profile


def _sample(blocks: Iterable[RowBlock]) -> tuple[Tensor, Tensor]:
    """One key drawn for every row, and the logarithm of its share."""
    drawn, logs = [], []
    for block in blocks:
        if bool((block.weights < 0).any()):
            raise ShapeError(f"{NEGATIVE}: nothing can be drawn from them")
        total = block.weights.sum(-1, keepdim=True)
        if not bool(total.isfinite().all()):
            raise ShapeError("this map has weights that are infinite or NaN: nothing can be drawn from them")
        dead = total == 0
        # a dead row draws the place after the last key
        share = torch.cat([block.weights, dead.to(total.dtype)], -1) / total.masked_fill(dead, 1)
        index = torch.multinomial(share.detach().flatten(0, -2), 1).view_as(total)
        logs.append(share.gather(-1, index).log().squeeze(-1))
        drawn.append((index + block.first).masked_fill(dead, -1).squeeze(-1))
    return torch.cat(drawn, -1), torch.cat(logs, -1)


def _indices(index: Index, size: int, device: torch.device) -> Tensor:
    if isinstance(index, slice):
        return torch.arange(size, device=device)[index]
    given = torch.as_tensor(index, device=device)
    if given.dtype == torch.bool and given.shape == (size,):
        given = given.nonzero()[:, 0]
    if given.numel() and (given.dtype == torch.bool or given.is_floating_point()):
        raise ShapeError(
            f"tile: an axis of {size} takes indices, a slice or {size} bools; got {list(given.shape)} {given.dtype}"
        )
    indices = given.long()
    if indices.numel() and not is_traced(indices) and (int(indices.min()) < -size or int(indices.max()) >= size):
        raise ShapeError(f"tile: index {indices.tolist()} goes outside an axis of {size}")
    return indices % size if size else indices
