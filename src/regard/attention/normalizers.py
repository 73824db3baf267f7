"""Normalisers: from a row of scores to a row of weights.

A normalizer sees whole rows. It returns the weights and one number per row from which any weight
of the row can be computed again (for softmax the log-sum-exp). A row in which nothing is allowed,
or in which every allowed score is -inf, is *dead*: its weights are 0.
"""

from collections.abc import Callable
from copy import copy
from math import inf
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.arguments import check_arguments
from regard.attention.entmax import entmax, power
from regard.attention.frozen import frozen_module
from regard.attention.plain import has_own_call
from regard.attention.tiles import Index
from regard.errors import ChoiceError, ShapeError, unknown
from regard.shapes import broadcast_to_scores, described, is_dense

ScoreRows = Float[Tensor, "*batch T S"]
AllowedRows = Bool[Tensor, "*batch T S"]
RowNumbers = Float[Tensor, "*batch T"]


class Normalizer(nn.Module):
    """Turns rows of scores into rows of weights; the base of all normalizers.

    Attributes:
        exact: weights that are computed again from row numbers (`reweight`) are as exact as those of whole rows.
        skips: keys that a row may not attend to can be left out of it, and nothing changes.
        competes: a key's weight depends on the scores of the row's other keys.
        masks: `forward` gives keys that are not allowed the weight 0; where it is False, `attend` does it. A class with
            a `forward` of its own says so anew. One that replaces another class's `forward` inherits neither
            `reweight` nor `of_part`, nor what is said above.
    """

    skips = False
    exact = True
    competes = True
    masks = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        order = [vars(base) for base in cls.__mro__ if base not in Normalizer.__mro__]
        given = [place for place, own in enumerate(order) if "forward" in own]
        names = ["masks"] if len(given) < 2 else ["masks", "skips", "competes", "reweight", "of_part"]
        for name in names if given else []:
            said = next((place for place, own in enumerate(order) if name in own), len(order))
            if said > given[0]:  # of another `forward` than the one that runs
                setattr(cls, name, vars(Normalizer)[name])

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        """Weights `[*batch, T, S]`, 0 where not allowed, and one number per row `[*batch, T]`."""
        raise NotImplementedError

    def reweight(self, scores: Tensor, numbers: Tensor) -> Tensor | None:  # noqa: ARG002
        """Weights of any part of the rows, from its scores and the row numbers `[*batch, T, 1]`; None: it cannot."""
        return None

    def of_part(self) -> "Normalizer | None":
        """What normalizes a part of the keys, so that parts can be merged; None: it needs whole rows.

        With u_ij a function of the score e_ij alone, weights are α_ij = u_ij / Z_i, and Z_i = u_i0 + Σ_j u_ij where
        keys compete, 1 where they do not. The row number tells Z_i; that of a row without keys tells u_i0. Rows of
        keys in two parts have the number `merge(left, right)`, and a part's weights become `share(part, whole)`
        times as large.
        """
        return None

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        """The row numbers of keys that stand in two parts, from the row numbers of each part."""
        raise NotImplementedError

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        """By what the weights of a part are multiplied in rows whose number is `whole`."""
        raise NotImplementedError

    def select(self, index: Index, shape: tuple[int, ...]) -> "Normalizer":  # noqa: ARG002
        """The same for some of the batch axes of scores `shape`."""
        return self

    def frozen(self) -> "Normalizer":
        """The same, which training does not change: itself where it has nothing to learn, else a copy."""
        return frozen_module(self)


class Exponential(Normalizer):
    """Weights are exponentials over a sum whose logarithm is the row number; the base of softmax and its kin."""

    skips = True

    def reweight(self, scores: Tensor, numbers: Tensor) -> Tensor:
        return _exponential(scores, numbers)

    def of_part(self) -> Normalizer:
        return SHARED["softmax"]

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.logaddexp(left, right)

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        return (part - whole).exp().masked_fill(whole == -torch.inf, 0)


class Softmax(Exponential):
    """α_ij = exp(e_ij) / Σ_j' exp(e_ij') over the allowed keys; its row number is the log-sum-exp."""

    masks = True

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        scores = scores.masked_fill(~allowed, -torch.inf)
        dead = (scores == -torch.inf).all(-1, keepdim=True)
        # softmax of nothing but -inf is NaN, and so is its gradient: dead rows get a harmless 0 first
        living = scores.masked_fill(dead, 0)
        weights = torch.softmax(living, -1).masked_fill(dead, 0)
        number = torch.logsumexp(living, -1, keepdim=True) if scores.shape[-1] else living.sum(-1, keepdim=True)
        return weights, number.masked_fill(dead, -torch.inf).squeeze(-1)


class Sink(Exponential):
    """α_ij = exp(e_ij) / (exp(z) + Σ_j' exp(e_ij')): softmax with one extra logit z a head, which gets what is left.

    Rows sum to less than one; a query that finds nothing looks nowhere. Its row number is the logarithm
    of the denominator. `"softmax1"` is z = 0 (Miller 2023, "Attention is off by one"; learned sinks:
    OpenAI 2025, gpt-oss model card, section 2.2).

    Args:
        logits: z, a number or a tensor `[heads]` (axis -3 of the scores), learned or fixed. A number stays a number:
            it has no device, and nothing can move or initialize it.
    """

    masks = True
    logits: Tensor | float

    @check_arguments
    def __init__(self, logits: Tensor | float = 0.0) -> None:
        super().__init__()
        if isinstance(logits, Tensor) and not isinstance(logits, nn.Parameter):
            logits = logits if logits.is_floating_point() else logits.to(torch.get_default_dtype())
            self.register_buffer("logits", logits, persistent=False)
        else:
            self.logits = logits

    def select(self, index: Index, shape: tuple[int, ...]) -> Normalizer:
        if not isinstance(self.logits, Tensor) or not self.logits.ndim or len(shape) < 3:
            return self
        if self.logits.numel() == 1:
            return self._with(self.logits.reshape(()))  # what is selected may have no heads
        heads = torch.arange(shape[-3], device=self.logits.device).expand(shape[:-2])[index]
        if not heads.numel():
            return self._with(self.logits.reshape(-1)[0])
        whose = heads[(0,) * (heads.ndim - 1)] if heads.ndim else heads
        return self._with(self.logits[whose if len(set(whose.reshape(-1).tolist())) > 1 else whose.max()])

    def _with(self, logits: Tensor) -> "Sink":
        """The same, of a subclass too, with other logits."""
        found = copy(self)
        found._parameters, found._buffers = dict(self._parameters), dict(self._buffers)
        found._non_persistent_buffers_set = set(self._non_persistent_buffers_set)
        found._parameters.pop("logits", None)
        found._buffers.pop("logits", None)
        vars(found).pop("logits", None)
        found.register_buffer("logits", logits, persistent=False)
        return found

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        sink = torch.as_tensor(self.logits, dtype=scores.dtype, device=scores.device)
        if sink.ndim:
            if scores.ndim < 3 or sink.ndim > 1 or sink.shape[0] not in (1, scores.shape[-3]):
                heads = scores.shape[-3] if scores.ndim > 2 else 1
                raise ShapeError(f"Sink has logits of shape {list(sink.shape)} and the scores have {heads} heads")
            sink = sink[:, None, None]
        scores = scores.masked_fill(~allowed, -torch.inf)
        dead = (scores == -torch.inf).all(-1, keepdim=True)
        living = torch.cat([scores.masked_fill(dead, 0), sink.expand(*scores.shape[:-1], 1)], -1)
        weights = torch.softmax(living, -1)[..., :-1].masked_fill(dead, 0)
        number = _nan_if_infinite(torch.logsumexp(living, -1, keepdim=True))
        return weights, torch.where(dead, sink, number).squeeze(-1)


class Summed(Normalizer):
    """The row number is a sum over the row's keys; the base of normalizers that divide by it, or by nothing."""

    skips = True

    def of_part(self) -> Normalizer:
        return self

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        return part / whole.masked_fill(whole == 0, 1)


class Uniform(Summed):
    """α_ij = 1 / (number of keys that i may attend to): the baseline that treats all inputs equally.

    It does not read the scores' values (a NaN or infinite score changes nothing); its row number is
    the number of allowed keys.
    """

    masks = True

    def reweight(self, scores: Tensor, numbers: Tensor) -> Tensor:
        return (1 / numbers.clamp(min=1)).to(scores.dtype).expand_as(scores)

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        seen = allowed.to(scores.dtype)
        number = seen.sum(-1, keepdim=True)
        return seen / number.clamp(min=1), number.squeeze(-1)


class Entmax(Normalizer):
    """α_ij = max(0, (α-1) e_ij - τ_i)^(1/(α-1)), with the τ_i that makes the row sum to one; its row number is τ_i.

    α = 1 is softmax, 1.5 `"entmax15"`, 2 `"sparsemax"` (the projection onto the simplex); between them the rows are
    the sparser the larger α is, with exact zeros. All derivatives are exact.

    Args:
        alpha: 1 or more.

    Raises:
        ShapeError: an alpha below 1, or infinite.

    Source: Martins and Astudillo 2016, equation 2; Peters et al. 2019, equation 10.
    """

    skips = True
    masks = True

    @check_arguments
    def __init__(self, alpha: float = 1.5) -> None:
        super().__init__()
        if not 1 <= alpha < inf:
            raise ShapeError(f"Entmax needs an alpha of at least 1 (1 is softmax), not infinite; got {alpha}")
        self.alpha = float(alpha)
        self.exact = alpha <= 2  # above, a number τ near 0 has too few digits

    def reweight(self, scores: Tensor, numbers: Tensor) -> Tensor:
        if self.alpha == 1:
            return _exponential(scores, numbers)
        above = scores * (self.alpha - 1) - numbers.to(scores.dtype)
        return power(above.relu(), 1 / (self.alpha - 1))

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        if self.alpha == 1 or not scores.shape[-1]:
            weights, numbers = Softmax()(scores, allowed)
        else:
            weights, numbers = entmax(scores, allowed.expand_as(scores), self.alpha)
        return weights, numbers


class Sigmoid(Summed):
    """α_ij = 1 / (1 + exp(-e_ij)): every key for itself; rows sum to anything, and nothing competes.

    Its row number is the row's sum; a score of +inf or NaN makes the whole row NaN. Source: Ramapuram et al. 2024,
    section 3 (without their bias -ln S: add it as bias= where rows are long).
    """

    masks = True
    competes = False

    def share(self, part: Tensor, whole: Tensor) -> Tensor:  # noqa: ARG002
        return torch.ones_like(part)

    def reweight(self, scores: Tensor, numbers: Tensor) -> Tensor:
        return scores.sigmoid() + 0 * numbers

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        weights = scores.sigmoid().masked_fill(scores == torch.inf, torch.nan).masked_fill(~allowed, 0)
        total = weights.sum(-1)
        return weights + 0 * total.detach()[..., None], total


class Share(Summed):
    """α_ij = max(0, e_ij) / Σ_j' max(0, e_ij'): each key's share of the row's scores; its row number is the sum.

    Source: Katharopoulos et al. 2020, equation 4.
    """

    masks = True

    def reweight(self, scores: Tensor, numbers: Tensor) -> Tensor:
        numbers = numbers.to(scores.dtype)
        return scores.relu() / numbers.masked_fill(numbers == 0, 1)

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        positive = scores.masked_fill(~allowed, 0).relu()
        total = _nan_if_infinite(positive.sum(-1, keepdim=True))
        return positive / total.masked_fill(total == 0, 1), total.squeeze(-1)


class Hard(Normalizer):
    """One key for each query: the one with the highest score (the lower index on a tie), or one drawn by the softmax.

    Weights are 0 and 1; the gradient is the softmax's (straight through: Bengio et al. 2013, section 4). For
    REINFORCE (Xu et al. 2015, section 4.1) take the softmax's map and its `sample()`, which gives the draw's
    log-probability. Its row number is the chosen key, -1 in a dead row.

    Args:
        sample: draw with torch's generator instead of taking the highest. Weights that are computed again are drawn
            again: a map, its `argmax()` and the output it belongs to then show different draws.
    """

    masks = True

    def __init__(self, sample: bool = False) -> None:
        super().__init__()
        self.sample = sample

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        soft, _ = Softmax()(scores, allowed)
        if not scores.shape[-1]:
            return soft, soft.sum(-1) - 1
        dead = (soft == 0).all(-1, keepdim=True)
        if self.sample:
            share = soft.detach().masked_fill(dead | soft.isnan(), 1).flatten(0, -2)
            chosen = torch.multinomial(share, 1).view(dead.shape)
        else:
            chosen = soft.argmax(-1, keepdim=True)
        hard = torch.zeros_like(soft).scatter(-1, chosen, 1).masked_fill(dead, 0)
        hard = torch.where(soft.isnan(), soft, hard)
        return hard + (soft - soft.detach()), chosen.masked_fill(dead, -1).squeeze(-1).to(soft.dtype)


class Called(Normalizer):
    """A normalizer with hooks, or a `forward` set on the object: only a call says what it gives."""

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        self.normalizer = normalizer

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        found: tuple[Tensor, Tensor] = self.normalizer(scores, allowed)
        return found

    def select(self, index: Index, shape: tuple[int, ...]) -> Normalizer:
        part = self.normalizer.select(index, shape)
        return self if part is self.normalizer else Called(part)


class WholeRows(Normalizer):
    """Any callable (scores, allowed) -> weights over whole rows; its row number is the sum of the weights."""

    masks = True

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        dead = (~allowed | (scores == -torch.inf)).all(-1, keepdim=True)
        weights = self.function(scores, allowed)
        fits = is_dense(weights) and weights.is_floating_point() and weights.device == scores.device
        if not fits:
            raise ShapeError(
                f"the normalizer's function gave {described(weights)}: it must give floating-point weights "
                f"{list(scores.shape)} on {scores.device}"
            )
        weights = broadcast_to_scores(weights.to(scores.dtype), tuple(scores.shape), "table of weights").expand_as(
            scores
        )
        weights = weights.masked_fill(~allowed | dead, 0)
        return weights, weights.sum(-1)


def as_rows(found: Any, scores: Tensor, owner: str) -> tuple[Tensor, Tensor]:
    """What a normalizer gave for scores `[*batch, T, S]`: weights of the same shape and a number for each row.

    Raises:
        ShapeError: it is not two tensors of floating-point numbers, `[*batch, T, S]` and `[*batch, T]`.
    """
    shapes = (scores.shape, scores.shape[:-1])
    if (
        isinstance(found, tuple)
        and len(found) == len(shapes)
        and all(
            is_dense(one) and one.shape == shape and one.is_floating_point() and one.device == scores.device
            for one, shape in zip(found, shapes, strict=True)
        )
    ):
        return found
    got = " and ".join(map(described, found)) if isinstance(found, tuple) else described(found)
    raise ShapeError(
        f"{owner} gave {got} for scores {list(scores.shape)}: a normalizer gives floating-point weights "
        f"{list(shapes[0])} and a number for each row {list(shapes[1])}"
    )


def _nan_if_infinite(statistic: Tensor) -> Tensor:
    """A score of +inf makes its row NaN, so the statistic that gives the row's weights again is NaN too."""
    return statistic.masked_fill(statistic == torch.inf, torch.nan)


def _exponential(scores: Tensor, numbers: Tensor) -> Tensor:
    """exp(e - n), and 0 in a dead row; in float64, where large scores lose no digits."""
    return (scores.double() - numbers).exp().masked_fill(scores == -torch.inf, 0).to(scores.dtype)


NormalizerLike = str | Normalizer | Callable[[Tensor, Tensor], Tensor]

NAMED: dict[str, Callable[[], Normalizer]] = {
    "softmax": Softmax, "sparsemax": lambda: Entmax(2.0), "entmax15": lambda: Entmax(1.5), "sigmoid": Sigmoid,
    "softmax1": Sink, "uniform": Uniform,
}  # fmt: skip


SHARED = {name: make() for name, make in NAMED.items()}  # none of them has parameters


def as_normalizer(normalizer: NormalizerLike) -> Normalizer:
    """The normalizer that a name, a `Normalizer` or a callable stands for.

    Raises:
        ChoiceError: an unknown name, with the nearest spelling; a class in place of an object.
    """
    if isinstance(normalizer, Normalizer):
        return Called(normalizer) if has_own_call(normalizer) else normalizer
    if isinstance(normalizer, str) and normalizer in NAMED:
        return SHARED[normalizer]
    if isinstance(normalizer, type):
        raise ChoiceError(f"normalizer: {normalizer.__name__} is a class: make an object, {normalizer.__name__}(…)")
    if not isinstance(normalizer, str) and callable(normalizer):
        return WholeRows(normalizer)
    raise unknown("normalizer", normalizer, NAMED)
