"""A spec: what one attention does, as data. Numbers and tensors with names, never closures over inputs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from regard.attention.biases import Bias, BiasLike, as_bias
from regard.attention.masks import Mask, MaskLike, as_mask
from regard.attention.normalizers import Normalizer, NormalizerLike, as_normalizer, as_rows
from regard.attention.scores import Score, ScoreLike, as_score, as_scores
from regard.attention.tiles import Index
from regard.errors import ShapeError, shown


@dataclass(frozen=True, eq=False)
class Spec:
    """normalize(score(query, key) + bias, mask), with dropout on the weights.

    Attributes:
        first: the first query and the first key, where they are a part of more: dropout counts on from there.
    """

    score: Score
    normalizer: Normalizer
    mask: Mask | None = None
    bias: Bias | None = None
    dropout: float = 0.0
    first: tuple[int, int] = (0, 0)

    def tensors(self) -> list[Tensor]:
        """The parameters of score and normalizer, and what the bias is made of: a derivative may be wanted of each."""
        bias = [] if self.bias is None else self.bias.tensors()
        return [*bias, *self.score.parameters(), *self.normalizer.parameters()]

    def corner(self, shape: tuple[int, ...], device: torch.device) -> list[Tensor]:
        """The bias of the first query and key of scores `shape`, which depends on all that it is made of."""
        first = torch.zeros(1, dtype=torch.long, device=device)
        return [] if self.bias is None or not prod(shape) else [self.bias.tile(first, first, shape)]

    def check_data(self, query: Tensor) -> None:
        """Refuse what has no data, on the meta device, beside a query that has; in a graph nothing is looked at.

        Raises:
            ShapeError: names it.
        """
        if query.is_meta or torch.compiler.is_compiling():
            return
        parts: dict[str, Iterable[Any]] = {
            "score": self.score.parameters(),
            "normalizer": (*self.normalizer.parameters(), *self.normalizer.buffers()),
            "mask": () if self.mask is None else list(vars(self.mask).values()),
            "bias": () if self.bias is None else self.bias.tensors(),
        }
        for name, own in parts.items():
            if any(isinstance(part, Tensor) and part.is_meta for part in own):
                raise ShapeError(f"{name} is on meta, where tensors have no data, and query on {query.device}")

    def select(self, index: Index, shape: tuple[int, ...]) -> "Spec":
        """The same for some of the batch axes of scores `shape`."""
        return replace(
            self,
            normalizer=self.normalizer.select(index, shape),
            mask=None if self.mask is None else self.mask.select(index, shape),
            bias=None if self.bias is None else self.bias.select(index, shape),
        )

    def part(self, first: tuple[int, int], shape: tuple[int, ...]) -> "Spec":
        """The same for the queries from `first[0]` and keys from `first[1]` of scores `shape`, counted from there."""
        return replace(
            self,
            mask=None if self.mask is None else self.mask.part(first, shape),
            bias=None if self.bias is None else self.bias.part(first, shape),
            first=(self.first[0] + first[0], self.first[1] + first[1]),
        )

    def scores(self, query: Tensor, key: Tensor, rows: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """Score plus bias of the queries `rows` (None: of all queries) against every key."""
        scores = as_scores(self.score(query, key), query, key, type(self.score).__name__)
        if self.bias is None:
            return scores
        if rows is None:
            return scores + self.bias.full(shape, query.device).to(scores.dtype)
        columns = torch.arange(shape[-1], device=query.device)
        return scores + self.bias.tile(rows, columns, shape).to(scores.dtype)

    def normalize(self, scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of scores, 0 where not allowed, and row numbers."""
        weights, numbers = as_rows(self.normalizer(scores, allowed), scores, type(self.normalizer).__name__)
        return weights if self.normalizer.masks else weights.masked_fill(~allowed, 0), numbers

    def allowed(self, rows: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Which keys the queries `rows` (None: all queries) may attend to, broadcastable to `[*batch, t, S]`."""
        if self.mask is None:
            return torch.ones(1, shape[-1], dtype=torch.bool, device=device)
        if rows is None:
            return self.mask.full(shape, device)
        return self.mask.tile(rows, torch.arange(shape[-1], device=device), shape)


def make_spec(
    score: ScoreLike,
    normalizer: NormalizerLike,
    mask: MaskLike | None,
    bias: BiasLike | None,
    dropout: float = 0.0,
) -> Spec:
    """A spec from what a person writes.

    Raises:
        ChoiceError: an unknown name, a float mask, a bool bias.
        ShapeError: a dropout outside [0, 1).
    """
    one = isinstance(dropout, Real) or (isinstance(dropout, Tensor) and dropout.numel() == 1)
    if not (one and 0 <= dropout < 1):
        raise ShapeError(f"dropout must be a probability in [0, 1); got {shown(dropout)}")
    return Spec(
        score=as_score(score),
        normalizer=as_normalizer(normalizer),
        mask=None if mask is None else as_mask(mask),
        bias=None if bias is None else as_bias(bias),
        dropout=dropout,
    )
