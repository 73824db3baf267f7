"""Biases: numbers added to the scores before masking."""

from torch import Tensor

from regard.errors import ChoiceError
from regard.shapes import broadcast_to_scores


class Bias:
    """Numbers that belong to a query and a key by their places; the base of all biases."""

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The bias of query `rows[i]` and key `columns[j]`, broadcastable to `[*batch, t, s]`."""
        raise NotImplementedError

    def is_learned(self) -> bool:
        """Whether a gradient flows into it."""
        return False

    def __add__(self, other: "Bias | None") -> "Bias":
        return self if other is None else Both(self, other)


class Both(Bias):
    """The sum of two biases."""

    def __init__(self, left: Bias, right: Bias) -> None:
        self.left, self.right = left, right

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.left.tile(rows, columns, shape) + self.right.tile(rows, columns, shape)

    def is_learned(self) -> bool:
        return self.left.is_learned() or self.right.is_learned()


class Added(Bias):
    """A float tensor, learned or fixed, broadcast from the right to `[*batch, T, S]`."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
        whole = broadcast_to_scores(self.tensor, shape, "bias")
        return whole[..., rows[:, None], columns]

    def is_learned(self) -> bool:
        return self.tensor.requires_grad


class Diagonals(Bias):
    """A bias that depends on the distance alone, b_ij = d[j - i + T - 1], in O(T + S).

    Args:
        values: d, `[*batch, T + S - 1]`, from the farthest key before a query to the farthest after it.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.values[..., columns - rows[:, None] + shape[-2] - 1]

    def is_learned(self) -> bool:
        return self.values.requires_grad


class ChosenBias(Bias):
    """A bias of scores `whole` for some of their batch axes."""

    def __init__(self, bias: Bias, whole: tuple[int, ...], index: tuple[int | slice, ...]) -> None:
        self.bias, self.whole, self.index = bias, whole, index

    def is_learned(self) -> bool:
        return self.bias.is_learned()

    def tile(self, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        tile = self.bias.tile(rows, columns, self.whole)
        return tile.expand(*self.whole[:-2], len(rows), len(columns))[self.index]


BiasLike = Bias | Tensor


def as_bias(bias: BiasLike) -> Bias:
    """The bias that a `Bias` or a float tensor stands for.

    Raises:
        ChoiceError: a bool tensor (that is a mask) or anything else.
    """
    if isinstance(bias, Bias):
        return bias
    if isinstance(bias, Tensor) and bias.is_floating_point():
        return Added(bias)
    if isinstance(bias, Tensor):
        raise ChoiceError(f"bias must be a float tensor; got {bias.dtype}: what forbids looking goes to mask=")
    raise ChoiceError(f"bias must be a regard bias or a float tensor; got {type(bias).__name__}")
