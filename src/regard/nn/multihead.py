"""Attention of several heads: project, split, attend, join (Vaswani et al. 2017, section 3.2.2)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.attention.masks import And, Causal, MaskLike
from regard.attention.normalizers import Normalizer
from regard.attention.operator import attend
from regard.attention.scores import Score
from regard.attention.watch import owned
from regard.errors import ShapeError
from regard.nn.context import Context, check_looks_back
from regard.shapes import Allowed

Heads = Float[Tensor, "*batch heads n d_head"]
KeyHeads = Float[Tensor, "*batch key_heads s d_head"]


class MultiHead(nn.Module):
    """Concat(head_1 … head_h) W_O, head_i = attend(f(x) W_Q^i, m W_K^i, m W_V^i); f(x) = x without a context.

    Args:
        width: of the queries' side and of the output.
        heads: number of query heads; divides `width`.
        key_width: width of the memory that keys are made from; `width` by default.
        value_width: width of the memory that values are made from; `key_width` by default.
        key_heads: number of key and value heads, a divisor of `heads` (grouped heads); `heads` by default.
        score: a name or a `Score` over one head's width.
        normalizer: a name or a `Normalizer`.
        dropout: on the weights.
        context: f, what makes a query from its surroundings; None makes it from its own state alone.

    Raises:
        ShapeError: heads that do not divide.
        ChoiceError: (by `forward`) a context that looks ahead, under a causal mask.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int | None = None,
        value_width: int | None = None,
        key_heads: int | None = None,
        score: str | Score = "scaled_dot",
        normalizer: str | Normalizer = "softmax",
        dropout: float = 0.0,
        context: Context | None = None,
    ) -> None:
        super().__init__()
        key_width = width if key_width is None else key_width
        value_width = key_width if value_width is None else value_width
        key_heads = heads if key_heads is None else key_heads
        if width % heads or heads % key_heads:
            raise ShapeError(
                "heads must divide the width and key_heads the heads; "
                f"got width {width}, heads {heads}, key_heads {key_heads}"
            )
        self.heads, self.key_heads, self.head_width = heads, key_heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width, key_heads * self.head_width)
        self.value = nn.Linear(value_width, key_heads * self.head_width)
        self.output = nn.Linear(width, width)
        self.score, self.normalizer, self.dropout = score, normalizer, dropout
        self.context = context
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def ask(self, x: Float[Tensor, "*batch n d"], allowed: Allowed | None = None) -> Heads:
        """The queries of states `[*batch, n, d]`, by heads; `allowed` as in `forward`."""
        return _split(self.query(x if self.context is None else self.context(x, allowed)), self.heads)

    def ask_next(
        self, x: Float[Tensor, "*batch d"], before: Float[Tensor, "..."] | None
    ) -> tuple[Heads, Float[Tensor, "..."] | None]:
        """The query `[*batch, heads, 1, d_head]` of one more state, and what the context remembers after it.

        Args:
            x: `[*batch, d]`, the next state of each sequence.
            before: what the context remembers; None before the first state, and without a context.
        """
        if self.context is None:
            return self.ask(x[..., None, :]), None
        x, after = self.context.step(x, self.context.start(x) if before is None else before)
        return _split(self.query(x[..., None, :]), self.heads), after

    def remember(
        self, memory: Float[Tensor, "*batch s d_m"], values: Float[Tensor, "*batch s d_n"] | None = None
    ) -> tuple[KeyHeads, KeyHeads]:
        """Keys and values of a memory, by heads; `values` is the memory itself unless given."""
        return (
            _split(self.key(memory), self.key_heads),
            _split(self.value(memory if values is None else values), self.key_heads),
        )

    def look(self, query: Heads, key: KeyHeads, value: KeyHeads, mask: MaskLike | None) -> Float[Tensor, "*batch n d"]:
        """What the queries find: attend in every head, join, project."""
        with owned(self):
            found = attend(
                query, key, value,
                score=self.score, normalizer=self.normalizer, mask=mask, dropout=self.dropout if self.training else 0.0,
            )  # fmt: skip
        joined: Tensor = self.output(found.transpose(-3, -2).flatten(-2))
        return joined

    def forward(
        self,
        x: Float[Tensor, "*batch n d"],
        memory: Float[Tensor, "*batch s d_m"] | None = None,
        values: Float[Tensor, "*batch s d_n"] | None = None,
        *,
        mask: MaskLike | None = None,
        allowed: Allowed | None = None,
    ) -> Float[Tensor, "*batch n d"]:
        """States `x` look at `memory` (self-attention: at themselves) under `mask`.

        A mask speaks of keys. That a query's context must not see padding among the states `x` is said by
        `allowed`, bool `[*batch, n]`, True = a real token; all by default.
        """
        if _looks_back(mask):
            check_looks_back("attention under a causal mask", self.context)
        return self.look(self.ask(x, allowed), *self.remember(x if memory is None else memory, values), mask)


def _split(x: Tensor, heads: int) -> Tensor:
    return torch.unflatten(x, -1, (heads, -1)).transpose(-3, -2)


def _looks_back(mask: MaskLike | None) -> bool:
    """Whether a mask is made to hide what comes later."""
    if isinstance(mask, And):
        return _looks_back(mask.left) or _looks_back(mask.right)
    return isinstance(mask, Causal)
