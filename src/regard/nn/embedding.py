"""Tokens and places as vectors."""

from math import log, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.nn.dropout import Dropout


def sinusoidal(length: int, dim: int) -> Float[Tensor, "length dim"]:
    """PE(p, 2i) = sin(p / 10000^(2i/dim)), PE(p, 2i+1) = cos(the same) (Vaswani et al. 2017, section 3.5)."""
    return sinusoids(torch.arange(length), dim)


def sinusoids(places: Int[Tensor, "*n"], dim: int) -> Float[Tensor, "*n dim"]:
    """The sinusoidal encoding of given places."""
    frequencies = torch.exp(torch.arange(0, dim, 2, device=places.device) * (-log(10000.0) / dim))
    angles = places[..., None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., :dim]


class Embedding(nn.Module):
    """Token vectors, scaled by √d where the paper scales them, with dropout.

    Args:
        vocabulary: number of tokens.
        width: d, the width of a vector.
        scaled: multiply by √d, so that tied output weights may stay small (Vaswani et al. 2017, section 3.4).
        dropout: on the vectors.
    """

    def __init__(self, vocabulary: int, width: int, scaled: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocabulary, width) * (width**-0.5 if scaled else 0.1))
        self.scale = sqrt(width) if scaled else 1.0
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Vectors `[*n, d]` of token ids `[*n]`."""
        vectors: Tensor = self.dropout(nn.functional.embedding(tokens, self.weight) * self.scale)
        return vectors


class Positions(nn.Module):
    """Vectors of places, added to the tokens': sinusoidal (no parameters) or learned.

    Args:
        kind: "sinusoidal", "learned" or "none".
        width: d.
        length: the largest number of places that learned positions know.
    """

    def __init__(self, kind: str, width: int, length: int) -> None:
        super().__init__()
        self.kind = kind
        self.length = length
        self.weight = nn.Parameter(torch.randn(length, width) * width**-0.5) if kind == "learned" else None

    def forward(self, vectors: Float[Tensor, "*n d"], places: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """`vectors` with their places added; learned places beyond the last are the last one's."""
        if self.kind == "none":
            return vectors
        if self.weight is None:
            return vectors + sinusoids(places, vectors.shape[-1]).to(vectors.dtype)
        return vectors + self.weight[places.clamp(max=self.length - 1)].to(vectors.dtype)


def count_places(allowed: Tensor) -> Tensor:
    """The place of each real token among the real ones: padding on either side changes nothing."""
    return (allowed.long().cumsum(-1) - 1).clamp(min=0)
