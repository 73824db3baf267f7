"""The Transformer's blocks: feed-forward, residual with norm, encoder layer, decoder layer."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention.masks import MaskLike, causal
from regard.errors import unknown
from regard.nn.context import check_looks_back
from regard.nn.dropout import Dropout
from regard.nn.multihead import MultiHead

States = Float[Tensor, "*batch n d"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class FeedForward(nn.Module):
    """FFN(x) = act(x W_1 + b_1) W_2 + b_2, at every position alone (Vaswani et al. 2017, equation 2)."""

    def __init__(self, width: int, inner: int, activation: str = "relu", dropout: float = 0.0) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, width)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = Dropout(dropout)
        for layer in (self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: States) -> States:
        """States `[*batch, n, d]` to states of the same shape."""
        result: Tensor = self.outer(self.dropout(self.activation(self.inner(x))))
        return result


class Residual(nn.Module):
    """Residual and norm around a part.

    norm "before": x + dropout(f(norm(x))) (Xiong et al. 2020);
    norm "after": norm(x + dropout(f(x))) (Vaswani et al. 2017).
    """

    def __init__(self, width: int, norm: str, dropout: float) -> None:
        super().__init__()
        if norm not in ("before", "after"):
            raise unknown("norm", norm, ("before", "after"))
        self.norm = nn.LayerNorm(width)
        self.before = norm == "before"
        self.dropout = Dropout(dropout)

    def enter(self, x: States) -> States:
        """What the part gets to see."""
        entered: Tensor = self.norm(x) if self.before else x
        return entered

    def leave(self, x: States, found: States) -> States:
        """What goes on after the part has found something."""
        joined = x + self.dropout(found)
        left: Tensor = joined if self.before else self.norm(joined)
        return left

    def forward(self, x: States, part: Callable[[States], States]) -> States:
        """The part with residual and norm around it."""
        return self.leave(x, part(self.enter(x)))


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, attention: MultiHead, feed_forward: FeedForward, width: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.self = attention
        self.feed_forward = feed_forward
        self.around_self = Residual(width, norm, dropout)
        self.around_feed_forward = Residual(width, norm, dropout)

    def forward(self, x: States, mask: MaskLike | None, allowed: Bool[Tensor, "*batch n"] | None = None) -> States:
        """States `[*batch, n, d]`; every state looks at the states that `mask` allows.

        Where the attention has a context, `allowed` keeps padding out of it.
        """
        x = self.around_self(x, lambda y: self.self(y, mask=mask, allowed=allowed))
        return self.around_feed_forward(x, self.feed_forward)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the memory, feed-forward.

    Raises:
        ChoiceError: an attention whose context looks ahead.
    """

    def __init__(
        self, attention: MultiHead, cross: MultiHead, feed_forward: FeedForward, width: int, norm: str, dropout: float
    ) -> None:
        super().__init__()
        for part in (attention, cross):
            check_looks_back("a decoder, which goes token by token,", part.context)
        self.self = attention
        self.cross = cross
        self.feed_forward = feed_forward
        self.around_self = Residual(width, norm, dropout)
        self.around_cross = Residual(width, norm, dropout)
        self.around_feed_forward = Residual(width, norm, dropout)

    def forward(self, x: States, memory: Float[Tensor, "*batch s d_m"], memory_mask: MaskLike) -> States:
        """States `[*batch, n, d]` of a whole target, each looking at those before it and at the memory."""
        x = self.around_self(x, lambda y: self.self(y, mask=causal()))
        x = self.around_cross(x, lambda y: self.cross(y, memory, mask=memory_mask))
        return self.around_feed_forward(x, self.feed_forward)  # type: ignore[no-any-return]
