"""Context in the query: q_i = W_Q f(x_1 … x_n), a query made from a state and its surroundings.

A context is f, a module given as `MultiHead(context=...)`; without one q_i = W_Q x_i. Keys and values stay as they
are (Li et al. 2019, section 4.1, and Yang et al. 2019 put context into queries and keys).

A context that depends on earlier states alone also runs step by step, with its own state in and out: `start`, then
`step` for each state. A context that looks ahead is refused in a decoder and under a causal mask.
"""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.arguments import check_arguments, check_least
from regard.errors import ChoiceError, ShapeError
from regard.nn.recurrent import RecurrentEncoder
from regard.shapes import Allowed

States = Float[Tensor, "*batch T d"]
Remembered = Float[Tensor, "..."]  # [*batch, …], a context's state after the states so far


class Context(nn.Module):
    """From states to states, each made from its surroundings; the base of all contexts.

    Attributes:
        width: d of the states that it takes; None takes any.
        looks_ahead: whether a state depends on later ones.
    """

    width: int | None = None
    looks_ahead: bool = True

    def forward(self, x: States, allowed: Allowed | None = None) -> States:
        """States made from their surroundings.

        Args:
            x: `[*batch, T, d]`.
            allowed: `[*batch, T]`, True = a real token; all by default. Other positions influence no
                output, and their own output is 0.

        Raises:
            ShapeError: another width, or an `allowed` of another shape.
        """
        raise NotImplementedError

    def start(self, like: Float[Tensor, "*batch d"]) -> Remembered:
        """The context's state before the first step, for inputs shaped like these.

        Raises:
            ChoiceError: the context looks ahead.
        """
        check_looks_back("a query made step by step", self)
        return self.nothing_yet(like)

    def nothing_yet(self, like: Float[Tensor, "*batch d"]) -> Remembered:
        """The context's state before the first step, `[*batch, …]`."""
        raise NotImplementedError

    def step(self, x: Float[Tensor, "*batch d"], before: Remembered) -> tuple[Float[Tensor, "*batch d"], Remembered]:
        """The output for the next state, and the context's state after it."""
        raise NotImplementedError


class Convolution(Context):
    """f(x)_i = Σ_o C_o x_{i+o}, o = -left … right; states beyond the ends and padding count as 0.

    A fresh one has C_0 = 1 and 0 elsewhere: training begins at the query without context.

    Args:
        width: d.
        left: number of states before i in the sum.
        right: number of states after i; with 0 the context does not look ahead.
        groups: C_o joins coordinates inside each of so many groups; 1 is a full matrix, `width` is depthwise.

    Raises:
        ShapeError: a negative reach, groups that do not divide.

    Source: Li et al. 2019, section 4.1.
    """

    @check_arguments
    def __init__(self, width: int, left: int, right: int = 0, groups: int = 1) -> None:
        super().__init__()
        check_least("Convolution", 1, width=width)
        if left < 0 or right < 0:
            raise ShapeError(f"Convolution takes at least 0 states on each side; got left {left} and right {right}")
        if groups < 1 or width % groups:
            raise ShapeError(f"groups must divide the width; got width {width} and groups {groups}")
        self.width, self.left, self.right = width, left, right
        self.looks_ahead = right > 0
        self.convolution = nn.Conv1d(width, width, left + 1 + right, groups=groups, bias=False)
        within = torch.arange(width) % (width // groups)
        with torch.no_grad():
            self.convolution.weight.zero_()[torch.arange(width), within, left] = 1.0

    def forward(self, x: States, allowed: Allowed | None = None) -> States:
        real = _silence(x, allowed, self.width)
        return _silence(self._convolve(nn.functional.pad(real, (0, 0, self.left, self.right))), allowed)

    def nothing_yet(self, like: Float[Tensor, "*batch d"]) -> Remembered:
        return like.new_zeros(*like.shape[:-1], self.left, like.shape[-1])

    def step(self, x: Float[Tensor, "*batch d"], before: Remembered) -> tuple[Float[Tensor, "*batch d"], Remembered]:
        seen = torch.cat([before.to(x.dtype), x[..., None, :]], -2)
        return self._convolve(seen)[..., 0, :], seen[..., 1:, :]

    def _convolve(self, x: Tensor) -> Tensor:
        """States `[*batch, n, d]` to the n - left - right that have all their surroundings."""
        if not x.numel() or x.shape[-2] <= self.left + self.right:  # torch convolves nothing empty
            return x[..., : max(0, x.shape[-2] - self.left - self.right), :]
        rows = x.reshape(prod(x.shape[:-2]), *x.shape[-2:]).transpose(1, 2)
        found: Tensor = self.convolution(rows).transpose(1, 2)
        return found.reshape(*x.shape[:-2], *found.shape[1:])


class RunningMean(Context):
    """f(x)_i = mean of x_j over the real j ≤ i: no parameters (Zhang et al. 2018, equation 1).

    The mean does not tell state i from the others; `Mixed(width, RunningMean())` does.
    """

    looks_ahead = False

    def forward(self, x: States, allowed: Allowed | None = None) -> States:
        real = _silence(x, allowed)
        tokens = torch.ones(x.shape[-2], dtype=torch.bool, device=x.device) if allowed is None else allowed
        count = tokens.expand(x.shape[:-1]).long().cumsum(-1).clamp(min=1)[..., None]
        # half precision cannot count: bfloat16 adds no 1 to 256
        mean = real.to(_wide(x)).cumsum(-2) / count
        return _silence(mean.to(x.dtype), allowed)

    def nothing_yet(self, like: Float[Tensor, "*batch d"]) -> Remembered:
        """How many states there were, and their sum, `[*batch, 1 + d]`."""
        return like.new_zeros(*like.shape[:-1], 1 + like.shape[-1], dtype=_wide(like))

    def step(self, x: Float[Tensor, "*batch d"], before: Remembered) -> tuple[Float[Tensor, "*batch d"], Remembered]:
        after = before + nn.functional.pad(x, (1, 0), value=1.0)
        return (after[..., 1:] / after[..., :1]).to(x.dtype), after


class Recurrence(Context):
    """f(x)_i = h_i = GRU(h_{i-1}, x_i); with both directions [→h_i; ←h_i], each of half the width.

    Args:
        width: d.
        direction: "forward", which does not look ahead; "backward" or "both", which do.

    Raises:
        ShapeError: an odd width with both directions.

    Source: Cho et al. 2014, section 2.3; both directions: Bahdanau et al. 2015, section 3.2.
    """

    @check_arguments
    def __init__(self, width: int, direction: str = "forward") -> None:
        super().__init__()
        sides = 2 if direction == "both" else 1
        if width % sides:
            raise ShapeError(f"a Recurrence of both directions gives each half of the width; got width {width}")
        self.width = width
        self.looks_ahead = direction != "forward"
        self.reader = RecurrentEncoder("gru", width, width // sides, direction=direction)

    def forward(self, x: States, allowed: Allowed | None = None) -> States:
        real = _silence(x, allowed, self.width)
        tokens = torch.ones(1, dtype=torch.bool, device=x.device) if allowed is None else allowed
        rows = prod(x.shape[:-2])
        states, _ = self.reader(
            real.reshape(rows, *x.shape[-2:]), tokens.expand(x.shape[:-1]).reshape(rows, x.shape[-2])
        )
        return states.reshape(x.shape)  # type: ignore[no-any-return]

    def nothing_yet(self, like: Float[Tensor, "*batch d"]) -> Remembered:
        return torch.zeros_like(like)

    def step(self, x: Float[Tensor, "*batch d"], before: Remembered) -> tuple[Float[Tensor, "*batch d"], Remembered]:
        one, hidden = x.reshape(-1, 1, x.shape[-1]), before.reshape(1, -1, before.shape[-1])
        after = self.reader.rnn.one(one, 0, first=hidden).reshape(x.shape)
        return after, after


class Mixed(Context):
    """f(x)_i = x_i + g ⊙ part(x)_i: a state beside its surroundings, g learned and 1 at first.

    Args:
        width: d.
        part: any other context.
    """

    @check_arguments
    def __init__(self, width: int, part: Context) -> None:
        super().__init__()
        check_least("Mixed", 1, width=width)
        self.width, self.looks_ahead = width, part.looks_ahead
        self.part = part
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: States, allowed: Allowed | None = None) -> States:
        found: Tensor = self.part(x, allowed)
        return _silence(x, allowed, self.width) + self.gain * found

    def nothing_yet(self, like: Float[Tensor, "*batch d"]) -> Remembered:
        return self.part.nothing_yet(like)

    def step(self, x: Float[Tensor, "*batch d"], before: Remembered) -> tuple[Float[Tensor, "*batch d"], Remembered]:
        found, after = self.part.step(x, before)
        return x + self.gain * found, after


def check_looks_back(where: str, context: Context | None) -> None:
    """Refuse a context that looks ahead where later states do not exist yet.

    Raises:
        ChoiceError: it does.
    """
    if context is not None and context.looks_ahead:
        raise ChoiceError(
            f"{where} cannot use a context that looks ahead ({type(context).__name__}): take Convolution with "
            'right=0, RunningMean, or Recurrence with direction="forward"'
        )


def _silence(x: Tensor, allowed: Tensor | None, width: int | None = None) -> Tensor:
    """`x` with 0 at padding; sizes that do not fit are refused."""
    if width is not None and x.shape[-1] != width:
        raise ShapeError(f"the context has width {width} and the states have {x.shape[-1]} on axis -1")
    if allowed is None:
        return x
    if allowed.dtype != torch.bool:
        raise ShapeError(f"allowed must be of bools, True at real tokens; got {allowed.dtype}")
    if allowed.ndim != x.ndim - 1 or any(a not in (1, n) for a, n in zip(allowed.shape, x.shape[:-1], strict=True)):
        raise ShapeError(
            f"allowed has shape {list(allowed.shape)} and the states have {list(x.shape)}: "
            f"expected {list(x.shape[:-1])}, True at real tokens"
        )
    return x.masked_fill(~allowed[..., None], 0.0)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
