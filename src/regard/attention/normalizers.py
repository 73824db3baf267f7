"""Normalisers: from a row of scores to a row of weights.

A normaliser sees whole rows. It returns the weights and one number per row from which any weight
of the row can be computed again (for softmax the log-sum-exp). A row in which nothing is allowed,
or in which every allowed score is -inf, is *dead*: its weights are 0.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.errors import ShapeError, unknown

ScoreRows = Float[Tensor, "*batch T S"]
AllowedRows = Bool[Tensor, "*batch T S"]
RowNumbers = Float[Tensor, "*batch T"]


class Normalizer(nn.Module):
    """Turns rows of scores into rows of weights; the base of all normalisers."""

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        """Weights `[*batch, T, S]`, 0 where not allowed, and one number per row `[*batch, T]`."""
        raise NotImplementedError

    def again(self, scores: Tensor, numbers: Tensor) -> Tensor | None:  # noqa: ARG002
        """Weights of any part of the rows, from its scores and the row numbers `[*batch, T, 1]`; None: it cannot."""
        return None

    def frozen(self) -> "Normalizer":
        """A copy that training does not change."""
        return deepcopy(self).requires_grad_(False)


class Softmax(Normalizer):
    """α_ij = exp(e_ij) / Σ_j' exp(e_ij') over the allowed keys; its row number is the log-sum-exp."""

    def again(self, scores: Tensor, numbers: Tensor) -> Tensor:
        return _exponential(scores, numbers)

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        scores = scores.masked_fill(~allowed, -torch.inf)
        dead = (scores == -torch.inf).all(-1, keepdim=True)
        # softmax of nothing but -inf is NaN, and so is its gradient: dead rows get a harmless 0 first
        living = scores.masked_fill(dead, 0)
        weights = torch.softmax(living, -1).masked_fill(dead, 0)
        number = torch.logsumexp(living, -1, keepdim=True) if scores.shape[-1] else living.sum(-1, keepdim=True)
        return weights, number.masked_fill(dead, -torch.inf).squeeze(-1)


class Sink(Normalizer):
    """α_ij = exp(e_ij) / (exp(z) + Σ_j' exp(e_ij')): softmax with one extra logit z a head, which gets what is left.

    Rows sum to less than one; a query that finds nothing looks nowhere. Its row number is the logarithm
    of the denominator. `"softmax1"` is z = 0 (Miller 2023, "Attention is off by one"; learned sinks:
    OpenAI 2025, gpt-oss model card, section 2.2).

    Args:
        logits: z, a number or a tensor `[heads]` (axis -3 of the scores), learned or fixed.
    """

    logits: Tensor

    def __init__(self, logits: Tensor | float = 0.0) -> None:
        super().__init__()
        if isinstance(logits, nn.Parameter):
            self.logits = logits
        else:
            self.register_buffer("logits", torch.as_tensor(logits), persistent=False)

    def frozen(self) -> Normalizer:
        return Sink(self.logits.detach().clone())

    def again(self, scores: Tensor, numbers: Tensor) -> Tensor:
        return _exponential(scores, numbers)

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        sink = self.logits.to(scores.dtype)
        if sink.ndim:
            if scores.ndim < 3 or sink.ndim > 1 or sink.shape[0] not in (1, scores.shape[-3]):
                heads = scores.shape[-3] if scores.ndim > 2 else 1
                raise ShapeError(f"Sink has logits of shape {list(sink.shape)} and the scores have {heads} heads")
            sink = sink[:, None, None]
        scores = scores.masked_fill(~allowed, -torch.inf)
        dead = (scores == -torch.inf).all(-1, keepdim=True)
        living = torch.cat([scores.masked_fill(dead, 0), sink.expand(*scores.shape[:-1], 1)], -1)
        weights = torch.softmax(living, -1)[..., :-1].masked_fill(dead, 0)
        number = torch.logsumexp(living, -1, keepdim=True)
        return weights, torch.where(dead, sink, number).squeeze(-1)


class Uniform(Normalizer):
    """α_ij = 1 / (number of keys that i may look at): the baseline that treats all inputs equally.

    It does not read the scores' values (a NaN or infinite score changes nothing); its row number is
    the number of allowed keys.
    """

    def again(self, scores: Tensor, numbers: Tensor) -> Tensor:
        return (1 / numbers.clamp(min=1)).to(scores.dtype).expand_as(scores)

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        seen = allowed.to(scores.dtype)
        number = seen.sum(-1, keepdim=True)
        return seen / number.clamp(min=1), number.squeeze(-1)


class WholeRows(Normalizer):
    """Any callable (scores, allowed) -> weights over whole rows; its row number is the sum of the weights."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        dead = (~allowed | (scores == -torch.inf)).all(-1, keepdim=True)
        weights = self.function(scores, allowed).masked_fill(~allowed | dead, 0)
        return weights, weights.sum(-1)


def _exponential(scores: Tensor, numbers: Tensor) -> Tensor:
    """exp(e - n), and 0 in a dead row; in float64, where large scores lose no digits."""
    return (scores.double() - numbers).exp().masked_fill(scores == -torch.inf, 0).to(scores.dtype)


NormalizerLike = str | Normalizer | Callable[[Tensor, Tensor], Tensor]

NAMED: dict[str, Callable[[], Normalizer]] = {"softmax": Softmax, "softmax1": Sink, "uniform": Uniform}


def as_normalizer(normalizer: NormalizerLike) -> Normalizer:
    """The normaliser that a name, a `Normalizer` or a callable stands for.

    Raises:
        ChoiceError: an unknown name, with the nearest spelling.
    """
    if isinstance(normalizer, Normalizer):
        return normalizer
    if isinstance(normalizer, str) and normalizer in NAMED:
        return NAMED[normalizer]()
    if not isinstance(normalizer, str) and callable(normalizer):
        return WholeRows(normalizer)
    raise unknown("normalizer", normalizer, NAMED)
