"""The Transformer's blocks: feed-forward, residual with norm, encoder layer, Conformer layer, decoder layer."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.attention.biases import BiasLike
from regard.attention.masks import Mask, MaskLike, causal, is_causal
from regard.errors import unknown
from regard.nn.context import check_looks_back
from regard.nn.dropout import Dropout
from regard.nn.multihead import MultiHead

States = Float[Tensor, "*batch n d"]
Attend = Callable[[States], States]  # the attention of a block, from normed states to its output

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
}


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, computed in at least the weight's precision: under autocast as LayerNorm, not in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """States of any shape `[*batch, d]`."""
        result: Tensor = super().forward(x.to(torch.promote_types(x.dtype, self.weight.dtype)))
        return result


NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "layer": lambda width, epsilon: nn.LayerNorm(width, epsilon),
    "rms": lambda width, epsilon: RMSNorm(width, epsilon),
}


def make_norm(kind: str, width: int, epsilon: float = 1e-5) -> nn.Module:
    """A norm of states.

    Args:
        kind: "layer", (x - mean) / √(variance + ε) · g + b (Ba et al. 2016), or "rms", x / √(mean of x² + ε) · g
            (Zhang and Sennrich 2019).
        width: of the states.
        epsilon: ε.

    Raises:
        ChoiceError: an unknown kind.
    """
    if kind not in NORMS:
        raise unknown("normalization", kind, NORMS)
    return NORMS[kind](width, epsilon)


class FeedForward(nn.Module):
    """FFN(x) = act(x W_1 + b_1) W_2 + b_2, at every position separately (Vaswani et al. 2017, equation 2).

    Gated: (act(x W_g + b_g) · (x W_1 + b_1)) W_2 + b_2 (Shazeer 2020, equation 6; with silu: SwiGLU).

    Args:
        width: of the states.
        inner: width of the hidden layer.
        activation: "relu", "gelu", "gelu_tanh" (its approximation) or "silu".
        dropout: on the hidden layer.
        gated: whether there is a gate.
        bias: whether the layers add the vectors b.

    Raises:
        ChoiceError: an unknown activation.
    """

    def __init__(
        self, width: int, inner: int, activation: str = "relu", dropout: float = 0.0, gated: bool = False,
        bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.inner = nn.Linear(width, inner, bias)
        self.outer = nn.Linear(inner, width, bias)
        self.gate = nn.Linear(width, inner, bias) if gated else None
        self.activation = ACTIVATIONS[activation]()
        self.dropout = Dropout(dropout)
        for layer in (self.inner, self.outer, self.gate):
            if layer is not None:
                nn.init.xavier_uniform_(layer.weight)
                if bias:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: States) -> States:
        """States `[*batch, n, d]` to states of the same shape."""
        inside = self.inner(x)
        inside = self.activation(inside) if self.gate is None else self.activation(self.gate(x)) * inside
        result: Tensor = self.outer(self.dropout(inside))
        return result


class Residual(nn.Module):
    """Residual connection and norm around one part f of a block.

    norm "before": x + dropout(f(norm(x))) (Xiong et al. 2020);
    norm "after": norm(x + dropout(f(x))) (Vaswani et al. 2017).

    Args:
        norm: LayerNorm, RMSNorm or any other module on states.
        place: "before" or "after".
        dropout: on the output of f.

    Raises:
        ChoiceError: an unknown place.
    """

    def __init__(self, norm: nn.Module, place: str, dropout: float) -> None:
        super().__init__()
        if place not in ("before", "after"):
            raise unknown("norm", place, ("before", "after"))
        self.norm = norm
        self.before = place == "before"
        self.dropout = Dropout(dropout)

    def forward(self, x: States, part: Callable[[States], States]) -> States:
        """Output of `part` on states x, with the residual connection and the norm around it."""
        joined: Tensor = x + self.dropout(part(self.norm(x) if self.before else x))
        return joined if self.before else self.norm(joined)


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward.

    Args:
        attention: the self-attention.
        feed_forward: applied to every state separately.
        around_self, around_feed_forward: the residual connection and norm of each.
    """

    def __init__(
        self, attention: MultiHead, feed_forward: FeedForward, around_self: Residual, around_feed_forward: Residual
    ) -> None:
        super().__init__()
        self.self = attention
        self.feed_forward = feed_forward
        self.around_self, self.around_feed_forward = around_self, around_feed_forward

    def forward(
        self, x: States, mask: MaskLike | None, allowed: Bool[Tensor, "*batch n"] | None = None,
        bias: BiasLike | None = None, positions: Int[Tensor, "*batch n"] | None = None,
    ) -> States:  # fmt: skip
        """States `[*batch, n, d]`, each attending to the states that `mask` allows.

        Args:
            x: the states.
            mask: which states each may attend to.
            allowed: True at real tokens; keeps padding out of an attention's context.
            bias: added to the scores.
            positions: of the states, for rotary embeddings; 0 … n-1 by default.
        """
        return self.block(x, lambda y: self.self(y, mask=mask, allowed=allowed, bias=bias, positions=positions))

    def block(self, x: States, attend: Attend) -> States:
        """The block with its self-attention given as a call: over whole sequences, or one token with its cache."""
        return self.around_feed_forward(self.around_self(x, attend), self.feed_forward)  # type: ignore[no-any-return]


class ConvolutionModule(nn.Module):
    """W_2 silu(norm(depthwise(glu(W_1 x)))): mixes each state with its neighbors (Gulati et al. 2020, figure 2).

    The norm is over a state's channels; the paper's batch norm would count padding.

    Args:
        width: of the states.
        reach: number of states on each side in the depth-wise convolution.
        dropout: on the output.
    """

    def __init__(self, width: int, reach: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, 2 * reach + 1, padding=reach, groups=width)
        self.norm = nn.LayerNorm(width)
        self.outer = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "B n d"], allowed: Bool[Tensor, "B n"] | None = None) -> Float[Tensor, "B n d"]:
        """States of the same shape; states where `allowed` is False influence no output."""
        inside = nn.functional.glu(self.inner(x), -1)
        if allowed is not None:
            inside = inside.masked_fill(~allowed[..., None], 0.0)
        if inside.numel():  # torch convolves nothing empty
            inside = self.depthwise(inside.transpose(1, 2)).transpose(1, 2)
        mixed = self.norm(inside)
        result: Tensor = self.dropout(self.outer(nn.functional.silu(mixed)))
        return result


class ConformerLayer(nn.Module):
    """Half a feed-forward, self-attention, a convolution, the other half, a norm (Gulati et al. 2020, section 2.4).

    Args:
        attention: the self-attention.
        convolution: mixes each state with its neighbors.
        halves: two feed-forwards; half of each one's output is added.
        residuals: the residual connection and norm around the first feed-forward, the attention, the convolution and
            the second feed-forward.
        norm: of the layer's output.
    """

    def __init__(
        self, attention: MultiHead, convolution: ConvolutionModule, halves: tuple[FeedForward, FeedForward],
        residuals: tuple[Residual, Residual, Residual, Residual], norm: nn.Module,
    ) -> None:  # fmt: skip
        super().__init__()
        self.self = attention
        self.convolution = convolution
        self.first, self.feed_forward = halves
        self.around_first, self.around_self, self.around_convolution, self.around_feed_forward = residuals
        self.norm = norm

    def forward(
        self, x: Float[Tensor, "B n d"], mask: MaskLike | None, allowed: Bool[Tensor, "B n"] | None = None,
        bias: BiasLike | None = None, positions: Int[Tensor, "B n"] | None = None,
    ) -> Float[Tensor, "B n d"]:  # fmt: skip
        """States `[B, n, d]`; arguments as in `EncoderLayer`; `allowed` also keeps padding out of the convolution."""
        x = self.around_first(x, lambda y: 0.5 * self.first(y))
        x = self.around_self(x, lambda y: self.self(y, mask=mask, allowed=allowed, bias=bias, positions=positions))
        x = self.around_convolution(x, lambda y: self.convolution(y, allowed))
        x = self.around_feed_forward(x, lambda y: 0.5 * self.feed_forward(y))
        return self.norm(x)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the memory, feed-forward.

    Args:
        attention: the self-attention.
        cross: the attention to the memory.
        feed_forward: applied to every state separately.
        around_self, around_cross, around_feed_forward: the residual connection and norm of each.

    Raises:
        ChoiceError: an attention whose context looks ahead.
    """

    def __init__(
        self, attention: MultiHead, cross: MultiHead, feed_forward: FeedForward,
        around_self: Residual, around_cross: Residual, around_feed_forward: Residual,
    ) -> None:  # fmt: skip
        super().__init__()
        for part in (attention, cross):
            check_looks_back("a decoder, which goes token by token,", part.context)
        self.self = attention
        self.cross = cross
        self.feed_forward = feed_forward
        self.around_self, self.around_cross = around_self, around_cross
        self.around_feed_forward = around_feed_forward

    def forward(
        self, x: States, memory: Float[Tensor, "*batch s d_m"], memory_mask: MaskLike,
        mask: MaskLike | None = None, bias: BiasLike | None = None, positions: Int[Tensor, "*batch n"] | None = None,
    ) -> States:  # fmt: skip
        """States `[*batch, n, d]` of a whole target, each attending to itself and earlier ones, and to the memory.

        Args:
            x: the states.
            memory: states of an encoder.
            memory_mask: which of them may be attended to.
            mask: which of itself and the earlier states each may attend to; all by default.
            bias, positions: of the self-attention, as in `EncoderLayer`.
        """
        back = causal() if mask is None else mask if isinstance(mask, Mask) and is_causal(mask) else causal() & mask
        return self.block(
            x,
            lambda y: self.self(y, mask=back, bias=bias, positions=positions),
            lambda y: self.cross(y, memory, mask=memory_mask),
        )

    def block(self, x: States, attend: Attend, attend_memory: Attend) -> States:
        """The block with its attentions given as calls: over whole sequences, or one token with its cache."""
        x = self.around_cross(self.around_self(x, attend), attend_memory)
        return self.around_feed_forward(x, self.feed_forward)  # type: ignore[no-any-return]
