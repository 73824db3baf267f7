"""Multi-head attention: project, split, attend, join (Vaswani et al. 2017, section 3.2.2)."""

from collections.abc import Callable, Collection

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.arguments import check_arguments, check_least
from regard.attention.biases import BiasLike
from regard.attention.masks import And, Causal, MaskLike, Window
from regard.attention.normalizers import Normalizer
from regard.attention.operator import attend
from regard.attention.scores import Score
from regard.attention.watch import owned
from regard.errors import ShapeError, unknown
from regard.nn.context import Context, check_looks_back
from regard.nn.embedding import Rotary
from regard.shapes import Allowed

PROJECTIONS = ("query", "key", "value", "output")
Heads = Float[Tensor, "*batch heads n d_head"]
KeyHeads = Float[Tensor, "*batch key_heads s d_head"]


class MultiHead(nn.Module):
    """Concat(head_1 … head_h) W_O, head_i = attend(f(x) W_Q^i, m W_K^i, m W_V^i); f(x) = x without a context.

    Args:
        width: of the input states and of the output.
        heads: number of query heads; divides `width`.
        key_width: width of the memory that keys are made from; `width` by default.
        value_width: width of the memory that values are made from; `key_width` by default.
        key_heads: number of key and value heads, a divisor of `heads` (grouped heads); `heads` by default.
        score: a name or a `Score` over one head's width.
        normalizer: a name or a `Normalizer`.
        dropout: on the weights.
        context: f, which makes queries from states and their surroundings; None is the identity.
        head_width: of one head's queries, keys and values; width / heads by default.
        biases: which of the four projections add a vector.
        rotary: rotates queries and keys by their positions.
        head_norm: from a head's width to a norm; one is made for queries and one for keys, applied before rotation.

    Raises:
        ShapeError: heads that do not divide.
        ChoiceError: (by `forward`) a context that looks ahead, under a causal mask.
    """

    @check_arguments
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
        head_width: int | None = None,
        biases: Collection[str] = PROJECTIONS,
        rotary: Rotary | None = None,
        head_norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        key_width = width if key_width is None else key_width
        value_width = key_width if value_width is None else value_width
        key_heads = heads if key_heads is None else key_heads
        sizes = {
            "key_width": key_width,
            "value_width": value_width,
            "head_width": 1 if head_width is None else head_width,
        }
        check_least("MultiHead", 1, width=width, heads=heads, key_heads=key_heads, **sizes)
        if not 0 <= dropout <= 1:
            raise ShapeError(f"MultiHead: dropout is a share of the weights, from 0 to 1; got {dropout}")
        if other := next((name for name in biases if name not in PROJECTIONS), ""):
            raise unknown("bias", other, PROJECTIONS)
        if (head_width is None and width % heads) or heads % key_heads:
            raise ShapeError(
                "heads must divide the width and key_heads the heads; "
                f"got width {width}, heads {heads}, key_heads {key_heads}"
            )
        self.heads, self.key_heads = heads, key_heads
        self.head_width = own = width // heads if head_width is None else head_width
        if rotary is not None and rotary.dim > own:
            raise ShapeError(f"rotary positions turn {rotary.dim} coordinates and a head is {own} wide")
        self.query = nn.Linear(width, heads * own, "query" in biases)
        self.key = nn.Linear(key_width, key_heads * own, "key" in biases)
        self.value = nn.Linear(value_width, key_heads * own, "value" in biases)
        self.output = nn.Linear(heads * own, width, "output" in biases)
        self.score, self.normalizer, self.dropout = score, normalizer, dropout
        self.context, self.rotary = context, rotary
        self.query_norm = head_norm(own) if head_norm else None
        self.key_norm = head_norm(own) if head_norm else None
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def queries(
        self,
        x: Float[Tensor, "*batch n d"],
        allowed: Allowed | None = None,
        positions: Int[Tensor, "*batch n"] | None = None,
    ) -> Heads:
        """The queries of states `[*batch, n, d]`, by heads; `allowed` and `positions` as in `forward`."""
        query = _split(self.query(x if self.context is None else self.context(x, allowed)), self.heads)
        return self.positioned(query, self.query_norm, positions)

    def next_query(
        self,
        x: Float[Tensor, "*batch d"],
        before: Float[Tensor, "..."] | None,
        positions: Int[Tensor, "*batch 1"] | None = None,
    ) -> tuple[Heads, Float[Tensor, "..."] | None]:
        """The query `[*batch, heads, 1, d_head]` of one more state, and the context's state after it.

        Args:
            x: `[*batch, d]`, the next state of each sequence.
            before: the context's state; None before the first step, and without a context.
            positions: of the state, for rotary embeddings.
        """
        if self.context is None:
            return self.queries(x[..., None, :], None, positions), None
        x, after = self.context.step(x, self.context.start(x) if before is None else before)
        return self.positioned(_split(self.query(x[..., None, :]), self.heads), self.query_norm, positions), after

    def keys_values(
        self,
        memory: Float[Tensor, "*batch s d_m"],
        values: Float[Tensor, "*batch s d_n"] | None = None,
        positions: Int[Tensor, "*batch s"] | None = None,
    ) -> tuple[KeyHeads, KeyHeads]:
        """Keys and values of a memory, by heads; `values` is the memory itself unless given."""
        key = _split(self.key(memory), self.key_heads)
        value = _split(self.value(memory if values is None else values), self.key_heads)
        return self.positioned(key, self.key_norm, positions), value

    def positioned(self, vectors: Tensor, norm: nn.Module | None, positions: Tensor | None) -> Tensor:
        """Queries or keys by heads, with head norm and rotation where the layer has them."""
        vectors = vectors if norm is None else norm(vectors)
        if self.rotary is None:
            return vectors
        turned: Tensor = self.rotary(vectors, None if positions is None else positions[..., None, :])
        return turned

    def attend(
        self, query: Heads, key: KeyHeads, value: KeyHeads, mask: MaskLike | None, bias: BiasLike | None = None
    ) -> Float[Tensor, "*batch n d"]:
        """Attend in every head, join the heads, project."""
        projected: Tensor = self.output(self.joined(query, key, value, mask, bias))
        return projected

    def joined(
        self, query: Heads, key: KeyHeads, value: KeyHeads, mask: MaskLike | None, bias: BiasLike | None = None
    ) -> Float[Tensor, "*batch n d"]:
        """Attend in every head, join the heads."""
        # three axes may be a batch, whose entries share no heads: `attend` cannot know it
        if query.ndim == 3 and self.key_heads not in (1, self.heads):
            key, value = (one.repeat_interleave(self.heads // self.key_heads, -3) for one in (key, value))
        with owned(self):
            found = attend(
                query, key, value,
                score=self.score, normalizer=self.normalizer, mask=mask, bias=bias,
                dropout=self.dropout if self.training else 0.0,
            )  # fmt: skip
        return found.transpose(-3, -2).flatten(-2)

    def forward(
        self,
        x: Float[Tensor, "*batch n d"],
        memory: Float[Tensor, "*batch s d_m"] | None = None,
        values: Float[Tensor, "*batch s d_n"] | None = None,
        *,
        mask: MaskLike | None = None,
        allowed: Allowed | None = None,
        bias: BiasLike | None = None,
        positions: Int[Tensor, "*batch n"] | None = None,
    ) -> Float[Tensor, "*batch n d"]:
        """States `x` attend to `memory` (in self-attention, to `x`) under `mask`.

        Args:
            x: the states.
            memory: states that keys are made from; `x` by default.
            values: states that values are made from; `memory` by default.
            mask: which keys each query may attend to.
            allowed: `[*batch, n]`, True at real tokens; keeps padding among `x` out of the queries' context. All by
                default.
            bias: added to the scores.
            positions: of the states `x`, for rotary embeddings; 0 … n-1 by default.
        """
        if _looks_back(mask):
            check_looks_back("attention under a causal mask", self.context)
        key, value = self.keys_values(x if memory is None else memory, values, positions if memory is None else None)
        return self.attend(self.queries(x, allowed, positions), key, value, mask, bias)


def _split(x: Tensor, heads: int) -> Tensor:
    return torch.unflatten(x, -1, (heads, -1)).transpose(-3, -2)


def _looks_back(mask: MaskLike | None) -> bool:
    """Whether a mask is causal, or a window that ends at the query; what a tensor allows is not looked at."""
    if isinstance(mask, And):
        return _looks_back(mask.left) or _looks_back(mask.right)
    return isinstance(mask, Causal) or (isinstance(mask, Window) and mask.right <= 0)
