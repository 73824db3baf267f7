"""Biases: numbers added to the scores before masking."""

from copy import deepcopy
from math import floor, log, log2

import torch
from torch import Tensor, nn

from regard.arguments import check_arguments, check_least
from regard.attention.masks import as_place
from regard.attention.tiles import Index, Offset, chosen, cut, first_position, follow
from regard.attention.tracing import is_traced
from regard.errors import ChoiceError, ShapeError
from regard.shapes import broadcast_to_scores, check_tensors

MOST_HEADS = 2**16  # of ALiBi


class Bias:
    """Numbers that belong to a query and a key by their places; the base of all biases."""

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The bias of query `rows[i]` and key `columns[j]`, broadcastable to `[*batch, t, s]`."""
        raise NotImplementedError

    def full(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The bias of every query and key, broadcastable to `shape`."""
        return self.tile(torch.arange(shape[-2], device=device), torch.arange(shape[-1], device=device), shape)

    def tensors(self) -> list[Tensor]:
        """What it is made of: all that a gradient could flow into."""
        if isinstance(self, nn.Module):
            return [*self.parameters(), *self.buffers()]
        return [part for part in list(vars(self).values()) if isinstance(part, Tensor)]

    def is_learned(self) -> bool:
        """Whether a gradient flows into it."""
        return any(part.requires_grad for part in self.tensors())

    def select(self, index: Index, shape: tuple[int, ...]) -> "Bias":
        """The same for some of the batch axes of scores `shape`."""
        return ChosenBias(self, shape, index)

    def part(self, first: tuple[int, int], shape: tuple[int, ...]) -> "Bias":
        """The same for the queries from `first[0]` and keys from `first[1]` of scores `shape`, counted from there."""
        return PartBias(self, first, (shape[-2], shape[-1]))

    def frozen(self) -> "Bias":
        """The same numbers, which training does not change any more."""
        return self

    def __add__(self, other: "BiasLike | None") -> "Bias":
        return self if other is None else Both(self, as_bias(other))


class Both(Bias):
    """The sum of two biases."""

    def __init__(self, left: Bias, right: Bias) -> None:
        self.left, self.right = left, right

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.left.tile(rows, columns, shape) + self.right.tile(rows, columns, shape)

    def tensors(self) -> list[Tensor]:
        return [*self.left.tensors(), *self.right.tensors()]

    def select(self, index: Index, shape: tuple[int, ...]) -> Bias:
        return Both(self.left.select(index, shape), self.right.select(index, shape))

    def frozen(self) -> Bias:
        return Both(self.left.frozen(), self.right.frozen())


class Added(Bias):
    """A float tensor, learned or fixed, broadcast from the right to `[*batch, T, S]`."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
        return cut(broadcast_to_scores(self.tensor, shape, "bias").to(rows.device), rows, columns)

    def full(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return broadcast_to_scores(self.tensor, shape, "bias").to(device)

    def frozen(self) -> Bias:
        return Added(self.tensor.detach().clone()) if self.is_learned() else self


class ByDistance(Bias):
    """A bias that depends on the distance alone: T + S - 1 numbers say it all."""

    def by_distance(self, distance: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The bias of keys `distance[n]` = j - i after their query, broadcastable to `[*batch, n]`.

        Args:
            distance: int `[n]`, between indices, not places.
            shape: the whole score matrix, `(*batch, T, S)`.
        """
        raise NotImplementedError

    def select(self, index: Index, shape: tuple[int, ...]) -> Bias:
        return ChosenByDistance(self, shape, index)

    def part(self, first: tuple[int, int], shape: tuple[int, ...]) -> Bias:
        return PartByDistance(self, first, (shape[-2], shape[-1]))

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
        t, s = rows.shape[0], columns.shape[0]
        if not t or not s or not (follow(rows) and follow(columns)):
            scattered = self.by_distance((columns - rows[:, None]).flatten(), shape)
            return scattered.reshape(*scattered.shape[:-1], t, s)
        first = int(columns[0] - rows[-1])
        return _along(self.by_distance(torch.arange(first, first + t + s - 1, device=rows.device), shape), s)

    def full(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        t, s = shape[-2:]
        if is_traced():  # a view of a symbolic size cannot be strided
            scattered = self.by_distance(distances(t, s, device).flatten(), shape)
            return scattered.reshape(*scattered.shape[:-1], t, s)
        if not t or not s:
            return super().full(shape, device)
        return _along(self.by_distance(torch.arange(1 - t, s, device=device), shape), s)


def distances(t: int, s: int, device: torch.device) -> Tensor:
    """j - i of every query and key, int `[t, s]`."""
    return torch.arange(s, device=device) - torch.arange(t, device=device)[:, None]


def _along(numbers: Tensor, s: int) -> Tensor:
    """Numbers `[..., t + s - 1]` by distance as `[..., t, s]`: row i begins t - 1 - i numbers later."""
    return numbers.unfold(-1, s, 1).flip(-2)


class ChosenByDistance(ByDistance):
    """A bias by distance of scores `whole` for some of their batch axes."""

    def __init__(self, bias: ByDistance, whole: tuple[int, ...], index: Index) -> None:
        self.bias, self.whole, self.index = bias, whole, index

    def tensors(self) -> list[Tensor]:
        return self.bias.tensors()

    def frozen(self) -> Bias:
        return ChosenByDistance(self.bias.frozen(), self.whole, self.index)  # type: ignore[arg-type]

    def by_distance(self, distance: Tensor, shape: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        numbers = self.bias.by_distance(distance, self.whole)[..., None, :]
        return chosen(numbers, self.index, self.whole)[..., 0, :]


class PartByDistance(ByDistance):
    """A bias by distance of scores with `size` queries and keys, for those from `first` on, counted from there."""

    def __init__(self, bias: ByDistance, first: tuple[int, int], size: tuple[int, int]) -> None:
        self.bias, self.first, self.size = bias, first, size

    def tensors(self) -> list[Tensor]:
        return self.bias.tensors()

    def by_distance(self, distance: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.bias.by_distance(distance + self.first[1] - self.first[0], (*shape[:-2], *self.size))

    def frozen(self) -> Bias:
        return self.bias.frozen().part(self.first, self.size)


class Diagonals(ByDistance):
    """A bias given for every distance, b_ij = d[j - i + T - 1], in O(T + S).

    Args:
        values: d, `[*batch, T + S - 1]`, from the farthest key before a query to the farthest after it.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def by_distance(self, distance: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.values.to(distance.device)[..., distance + shape[-2] - 1]

    def frozen(self) -> Bias:
        return Diagonals(self.values.detach().clone()) if self.is_learned() else self


class Alibi(ByDistance):
    """b_ij = -m_h · abs(j - place_i), one slope a head: the farther, the less (see `alibi`)."""

    def __init__(self, slopes: Tensor, offset: Offset = None) -> None:
        self.slopes, self.offset = slopes, offset

    def by_distance(self, distance: Tensor, shape: tuple[int, ...]) -> Tensor:
        _check_heads("alibi", len(self.slopes), shape)
        offset = first_position(shape, self.offset, distance.device)
        if isinstance(offset, Tensor) and offset.ndim:
            offset = offset.squeeze(-1)
        return -self.slopes.to(distance.device)[:, None] * (distance - offset).abs()


class RelativeBias(nn.Module, ByDistance):
    """T5's learned bias: one number for every head and every bucket of distances.

    Half of the buckets are single distances, the others grow with the logarithm up to `max_distance`, beyond which
    all is one. Distances are measured from the query's place i + S - T.

    Args:
        heads: number of heads (axis -3 of the scores).
        buckets: in all; keys after the query have half of them, if `bidirectional`.
        max_distance: from here on the last bucket.
        bidirectional: False gives every key after the query the bucket of distance 0 (for causal attention).

    Source: Raffel et al. 2020, section 2.1.
    """

    @check_arguments
    def __init__(self, heads: int, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True) -> None:
        super().__init__()
        check_least("RelativeBias", 1, heads=heads)
        sides = 2 if bidirectional else 1
        if buckets % (2 * sides) or buckets < 2 * sides or max_distance <= buckets // sides // 2:
            raise ShapeError(
                f"RelativeBias needs buckets that divide by {2 * sides} and a max_distance above "
                f"{max(1, buckets // sides // 2)}; got {buckets} buckets and max_distance {max_distance}"
            )
        self.weight = nn.Parameter(torch.zeros(buckets, heads))
        self.max_distance, self.bidirectional = max_distance, bidirectional

    def frozen(self) -> Bias:
        return deepcopy(self).requires_grad_(False)

    def by_distance(self, distance: Tensor, shape: tuple[int, ...]) -> Tensor:
        _check_heads("RelativeBias", self.weight.shape[1], shape)
        return self.weight.to(distance.device)[self.bucket(distance - first_position(shape, None, distance.device))].T

    def bucket(self, distance: Tensor) -> Tensor:
        """Which bucket a key falls into that stands `distance` places after the query."""
        count = self.weight.shape[0]
        first = torch.zeros_like(distance)
        if self.bidirectional:
            count //= 2
            first, distance = (distance > 0) * count, distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        single = count // 2
        far = (distance.clamp(min=1) / single).log() / log(self.max_distance / single) * (count - single)
        return first + torch.where(distance < single, distance, (single + far.long()).clamp(max=count - 1))


class ChosenBias(Bias):
    """A bias of scores `whole` for some of their batch axes."""

    def __init__(self, bias: Bias, whole: tuple[int, ...], index: tuple[int | slice, ...]) -> None:
        self.bias, self.whole, self.index = bias, whole, index

    def tensors(self) -> list[Tensor]:
        return self.bias.tensors()

    def frozen(self) -> Bias:
        return ChosenBias(self.bias.frozen(), self.whole, self.index)

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        return chosen(self.bias.tile(rows, columns, self.whole), self.index, self.whole)


class PartBias(Bias):
    """A bias of scores with `size` queries and keys, for those from `first` on, counted from there."""

    def __init__(self, bias: Bias, first: tuple[int, int], size: tuple[int, int]) -> None:
        self.bias, self.first, self.size = bias, first, size

    def tensors(self) -> list[Tensor]:
        return self.bias.tensors()

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.bias.tile(rows + self.first[0], columns + self.first[1], (*shape[:-2], *self.size))

    def select(self, index: Index, shape: tuple[int, ...]) -> Bias:
        return PartBias(self.bias.select(index, (*shape[:-2], *self.size)), self.first, self.size)

    def frozen(self) -> Bias:
        return self.bias.frozen().part(self.first, self.size)


@check_arguments
def alibi(heads: int, offset: Offset = None) -> Bias:
    """Attention with linear biases: b_ij = -m_h · abs(j - place_i), with m_h = 2^(-8h/heads), h = 1 … heads.

    For a number of heads that is no power of two, the slopes of the next smaller one, and between them those of
    twice as many, as the paper's code does. Under a causal mask this is the paper's bias; without one, the
    symmetric form.

    Args:
        heads: number of heads (axis -3 of the scores).
        offset: as in `causal`: where query 0 stands.

    Raises:
        ShapeError: there are no heads, or more than 65,536.

    Source: Press et al. 2022, section 3.
    """
    if not 1 <= heads <= MOST_HEADS:
        raise ShapeError(f"alibi: expected from 1 to {MOST_HEADS:,} heads; got {heads}")
    whole = 2 ** floor(log2(heads))
    slopes = [2 ** (-8 * h / whole) for h in range(1, whole + 1)]
    slopes += [2 ** (-4 * h / whole) for h in range(1, 2 * (heads - whole), 2)]
    return Alibi(torch.tensor(slopes), as_place(offset))


def _check_heads(name: str, heads: int, shape: tuple[int, ...]) -> None:
    if len(shape) < 3 or shape[-3] != heads:
        raise ShapeError(f"{name} has {heads} heads and the scores have shape {list(shape)}: heads stand on axis -3")


BiasLike = Bias | Tensor


def as_bias(bias: BiasLike) -> Bias:
    """The bias that a `Bias` or a float tensor stands for.

    Raises:
        ChoiceError: a bool tensor (that is a mask) or anything else.
    """
    if isinstance(bias, Bias):
        return bias
    if isinstance(bias, Tensor) and bias.is_floating_point():
        check_tensors(bias=bias)
        return Added(bias)
    if isinstance(bias, Tensor):
        raise ChoiceError(f"bias must be a float tensor; got {bias.dtype}: what forbids looking goes to mask=")
    raise ChoiceError(f"bias must be a regard bias or a float tensor; got {type(bias).__name__}")
