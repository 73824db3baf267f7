"""Embeddings of tokens and of positions."""

from math import log, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.arguments import check_arguments, check_least
from regard.errors import ShapeError
from regard.nn.dropout import Dropout


@check_arguments
def sinusoidal(length: int, dim: int) -> Float[Tensor, "length dim"]:
    """PE(p, 2i) = sin(p / 10000^(2i/dim)), PE(p, 2i+1) = cos(the same) (Vaswani et al. 2017, section 3.5).

    Raises:
        ShapeError: a negative length, or a dim below 1.
    """
    check_least("sinusoidal", 0, length=length)
    check_least("sinusoidal", 1, dim=dim)
    return sinusoids(torch.arange(length), dim)


def sinusoids(positions: Int[Tensor, "*n"], dim: int) -> Float[Tensor, "*n dim"]:
    """The sinusoidal encoding of given positions."""
    frequencies = torch.exp(torch.arange(0, dim, 2, device=positions.device) * (-log(10000.0) / dim))
    angles = positions[..., None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., :dim]


def normal(*sizes: int, std: float) -> nn.Parameter:
    """Parameter of these sizes, drawn from N(0, std²); on the meta device it stays without values.

    Drawing or multiplying there, where a model is built before its file is read, would import torch's compiler, which
    took half of the time that a command needs to start.
    """
    weight = torch.empty(*sizes)
    return nn.Parameter(weight if weight.is_meta else weight.normal_(std=std))


class Embedding(nn.Module):
    """Token vectors, scaled by √d where the paper scales them, with dropout.

    Args:
        vocabulary: number of tokens.
        width: d, the width of a vector.
        scaled: multiply by √d, so that tied output weights may stay small (Vaswani et al. 2017, section 3.4).
        dropout: on the vectors.
    """

    @check_arguments
    def __init__(self, vocabulary: int, width: int, scaled: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = normal(vocabulary, width, std=width**-0.5 if scaled else 0.1)
        self.scale = sqrt(width) if scaled else 1.0
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Vectors `[*n, d]` of token ids `[*n]`."""
        vectors: Tensor = self.dropout(nn.functional.embedding(tokens, self.weight) * self.scale)
        return vectors


class Positions(nn.Module):
    """Position embeddings, added to the tokens': sinusoidal (no parameters) or learned.

    Args:
        kind: "sinusoidal" (sine and cosine by turns, as the paper), "sinusoidal_halves" (all sines, then all cosines),
            "learned" or "none".
        width: d.
        length: number of learned positions.
    """

    @check_arguments
    def __init__(self, kind: str, width: int, length: int) -> None:
        super().__init__()
        self.kind = kind
        self.length = length
        self.weight = normal(length, width, std=width**-0.5) if kind == "learned" else None

    def forward(self, vectors: Float[Tensor, "*n d"], positions: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """`vectors` with their positions' added; positions beyond the last learned one take its vector."""
        if self.kind == "none":
            return vectors
        if self.weight is None:
            added = sinusoids(positions, vectors.shape[-1])
            if self.kind == "sinusoidal_halves":
                added = torch.cat([added[..., 0::2], added[..., 1::2]], -1)
            return vectors + added.to(vectors.dtype)
        return vectors + self.weight[positions.clamp(max=self.length - 1)].to(vectors.dtype)


class Rotary(nn.Module):
    """Rotary positions: pair i of a query's or key's coordinates is rotated by p · base^(-2i/dim) at position p.

    The dot product of a rotated query and a rotated key depends on their distance alone.

    Args:
        dim: number of coordinates that are rotated, an even number; the others stay as they are.
        base: the larger, the lower the lowest frequency.
        interleaved: pairs are (2i, 2i+1), as in the paper; else (i, i + dim/2), as in Llama.

    Raises:
        ShapeError: an odd dim; vectors narrower than dim.

    Source: Su et al. 2021, section 3.2.2.
    """

    @check_arguments
    def __init__(self, dim: int, base: float = 10000.0, interleaved: bool = False) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ShapeError(f"Rotary needs an even dim of at least 2; got {dim}")
        self.dim, self.base, self.interleaved = dim, base, interleaved

    def forward(
        self, vectors: Float[Tensor, "*batch T d"], positions: Int[Tensor, "*positions"] | None = None
    ) -> Float[Tensor, "*batch T d"]:
        """Rotated vectors, in their own dtype.

        Args:
            vectors: queries or keys.
            positions: of each, `[T]` or broadcastable to `[*batch, T]`; 0 … T-1 by default. With a cache, the
                position of a query is that of its own key.
        """
        if vectors.shape[-1] < self.dim:
            raise ShapeError(f"Rotary turns {self.dim} coordinates and the vectors have {vectors.shape[-1]}")
        positions = torch.arange(vectors.shape[-2], device=vectors.device) if positions is None else positions
        wide = torch.promote_types(vectors.dtype, torch.float32)
        powers = torch.arange(0, self.dim, 2, device=vectors.device, dtype=torch.float64) / -self.dim
        angles = positions[..., None] * self.base**powers
        cosine, sine = angles.cos().to(wide), angles.sin().to(wide)
        turning, rest = vectors[..., : self.dim].to(wide), vectors[..., self.dim :]
        axis = -1 if self.interleaved else -2
        a, b = turning.unflatten(-1, (-1, 2) if self.interleaved else (2, -1)).unbind(axis)
        turned = torch.stack([a * cosine - b * sine, b * cosine + a * sine], axis).flatten(-2)
        return torch.cat([turned.to(vectors.dtype), rest], -1)


def count_positions(allowed: Tensor) -> Tensor:
    """Position of each real token, counted among the real ones: padding on either side changes nothing."""
    return (allowed.long().cumsum(-1) - 1).clamp(min=0)
