"""Normalisers: from a row of scores to a row of weights.

A normaliser sees whole rows. It returns the weights and one number per row from which any weight
of the row can be computed again (for softmax the log-sum-exp). A row in which nothing is allowed,
or in which every allowed score is -inf, is *dead*: its weights are 0.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention.masks import Index
from regard.errors import ShapeError, unknown

ScoreRows = Float[Tensor, "*batch T S"]
AllowedRows = Bool[Tensor, "*batch T S"]
RowNumbers = Float[Tensor, "*batch T"]


class Normalizer(nn.Module):
    """Turns rows of scores into rows of weights; the base of all normalisers.

    Attributes:
        skips: keys that a row may not look at can be left out of it, and nothing changes.
    """

    skips = False

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        """Weights `[*batch, T, S]`, 0 where not allowed, and one number per row `[*batch, T]`."""
        raise NotImplementedError

    def again(self, scores: Tensor, numbers: Tensor) -> Tensor | None:  # noqa: ARG002
        """Weights of any part of the rows, from its scores and the row numbers `[*batch, T, 1]`; None: it cannot."""
        return None

    def select(self, index: Index, shape: tuple[int, ...]) -> "Normalizer":  # noqa: ARG002
        """The same for some of the batch axes of scores `shape`."""
        return self

    def frozen(self) -> "Normalizer":
        """A copy that training does not change."""
        return deepcopy(self).requires_grad_(False)


class Softmax(Normalizer):
    """α_ij = exp(e_ij) / Σ_j' exp(e_ij') over the allowed keys; its row number is the log-sum-exp."""

    skips = True

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

    skips = True
    logits: Tensor

    def __init__(self, logits: Tensor | float = 0.0) -> None:
        super().__init__()
        if isinstance(logits, nn.Parameter):
            self.logits = logits
        else:
            self.register_buffer("logits", torch.as_tensor(logits), persistent=False)

    def select(self, index: Index, shape: tuple[int, ...]) -> Normalizer:
        if self.logits.numel() == 1 or len(shape) < 3:
            return self
        heads = torch.arange(shape[-3]).expand(shape[:-2])[index]
        whose = heads[(0,) * (heads.ndim - 1)] if heads.ndim and heads.numel() else heads
        return Sink(self.logits[whose if len(set(whose.reshape(-1).tolist())) > 1 else whose.max()])

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

    skips = True

    def again(self, scores: Tensor, numbers: Tensor) -> Tensor:
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
        ShapeError: an alpha below 1.

    Source: Martins and Astudillo 2016, equation 2; Peters et al. 2019, equation 10.
    """

    skips = True

    def __init__(self, alpha: float = 1.5) -> None:
        super().__init__()
        if not alpha >= 1:
            raise ShapeError(f"Entmax needs an alpha of at least 1 (1 is softmax); got {alpha}")
        self.alpha = float(alpha)

    def again(self, scores: Tensor, numbers: Tensor) -> Tensor:
        if self.alpha == 1:
            return _exponential(scores, numbers)
        above = scores * (self.alpha - 1) - numbers.to(scores.dtype)
        return _power(above.relu(), 1 / (self.alpha - 1))

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        if self.alpha == 1 or not scores.shape[-1]:
            weights, numbers = Softmax()(scores, allowed)
        else:
            weights, numbers = _Entmax.apply(scores, allowed.expand_as(scores), self.alpha)  # type: ignore[no-untyped-call]
        return weights, numbers


class _Entmax(torch.autograd.Function):
    """Entmax as one step of differentiation, which remembers nothing but the weights α_ij.

    With s_ij = α_ij^(2-α) where α_ij > 0, else 0 (Peters et al. 2019, equation 14), and with the sums over j':

        dα_ij = s_ij (de_ij - Σ s_ij' de_ij' / Σ s_ij'),    dτ_i = (α-1) Σ s_ij' de_ij' / Σ s_ij'.
    """

    @staticmethod
    def forward(scores: Tensor, allowed: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        weights = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
        numbers = weights.new_empty(scores.shape[:-1])
        everything = _is_all_true(allowed)
        for e, seen, out, number in _pieces(scores, None if everything else allowed, weights, numbers.unsqueeze(-1)):
            _solve(e if seen is None else torch.where(seen, e, -torch.inf), alpha, out, number)
        return weights, numbers

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.alpha = inputs[2]
        ctx.save_for_backward(output[0])
        ctx.save_for_forward(output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, by_weights: Tensor | None, by_numbers: Tensor | None) -> tuple[Tensor | None, None, None]:
        (weights,) = ctx.saved_tensors
        if by_weights is None and by_numbers is None:
            return None, None, None
        by_weights = torch.zeros_like(weights) if by_weights is None else by_weights
        by_numbers = None if by_numbers is None else by_numbers.unsqueeze(-1)
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return _pull(weights, by_weights, by_numbers, ctx.alpha), None, None
        out = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
        for w, g, number, piece in _pieces(weights, by_weights, by_numbers, out):
            _pull_into(w, g, number, ctx.alpha, piece)
        return out, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None]:
        (weights,) = ctx.saved_tensors
        if tangent is None:
            return None, None
        slopes, total = _slopes(weights, ctx.alpha)
        change = tangent.masked_fill(slopes == 0, 0)
        middle = (slopes * change).sum(-1, keepdim=True) / total
        return slopes * (change - middle), (ctx.alpha - 1) * middle.squeeze(-1)

    @staticmethod
    def vmap(
        info: Any,  # noqa: ARG004
        in_dims: tuple[int | None, int | None, None],
        scores: Tensor,
        allowed: Tensor,
        alpha: float,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        first = [t if d is None else t.movedim(d, 0) for t, d in zip((scores, allowed), in_dims[:2], strict=True)]
        weights, numbers = _Entmax.apply(*torch.broadcast_tensors(*first), alpha)  # type: ignore[no-untyped-call]
        return (weights, numbers), (0, 0)


def _solve(scores: Tensor, alpha: float, weights: Tensor, numbers: Tensor) -> None:
    """Entmax of rows `[n, S]`, written into `weights` `[n, S]` and `numbers` `[n, 1]`."""
    highest = scores.amax(-1, keepdim=True)
    dead = highest == -torch.inf
    highest.masked_fill_(dead, 0)
    below = torch.sub(scores, highest, out=weights)  # there exponents and thresholds have the most digits
    threshold = _by_newton(below, alpha, weights) if alpha <= 2 else _by_halving(below, alpha, weights)
    torch.add(threshold, highest, alpha=alpha - 1, out=numbers).masked_fill_(dead, torch.inf)


def _by_newton(scores: Tensor, alpha: float, weights: Tensor) -> Tensor:
    """Entmax of rows `[n, S]` of scores whose highest is 0, for α ≤ 2: writes `weights` `[n, S]`, returns τ `[n, 1]`.

    The sum that has to become 1 is convex and falls with τ: Newton's method from the left never oversteps. So what
    has fallen to 0 stays there, and the steps can be taken in place. `weights` may be `scores`.
    """
    p = 1 / (alpha - 1)
    threshold = _below(scores, alpha)
    torch.add(-threshold, scores, alpha=alpha - 1, out=weights).relu_()
    _climb(weights, threshold, p)
    if p == 2:
        weights.mul_(weights)
    elif p != 1:
        weights.pow_(p)
    return threshold


def _below(scores: Tensor, alpha: float) -> Tensor:
    """A number `[n, 1]` near τ, and never above it.

    A part of a row has a lower τ than the row, and the highest of every eight scores are the part that matters most.
    """
    if scores.shape[-1] < 64:
        return torch.full_like(scores[:, :1], -1)
    part = scores
    for half in (scores.shape[-1] // 2, scores.shape[-1] // 4, scores.shape[-1] // 8):
        part = torch.maximum(part[:, :half], part[:, half : 2 * half])
    threshold = _below(part, alpha)
    above = torch.add(-threshold, part, alpha=alpha - 1, out=part).relu_()
    for _ in range(STEPS):
        _, step = _newton(above, 1 / (alpha - 1))
        above.sub_(step).relu_()
        threshold.add_(step)
    return threshold.sub_(8 * torch.finfo(scores.dtype).eps)  # more than rounding may have added


def _climb(above: Tensor, numbers: Tensor, p: float) -> None:
    """Newton's method to the end: takes from `above` = max(0, (α-1) e - τ) what it adds to `numbers` = τ, in place."""
    eps = torch.finfo(above.dtype).eps
    # from p = 2 on, a step leaves less than S/2 times the square of the surplus before it
    enough = (eps / above.shape[-1]) ** 0.5 if p >= 2 else 4 * eps
    for _ in range(64):
        surplus, step = _newton(above, p)
        above.sub_(step).relu_()
        numbers.add_(step)
        left = (surplus > enough).squeeze(-1).nonzero().squeeze(-1)
        if 2 * len(left) < len(above):
            break
    if len(left):
        few, their = above.index_select(0, left), numbers.index_select(0, left)
        _climb(few, their, p)
        above.index_copy_(0, left, few)
        numbers.index_copy_(0, left, their)


def _newton(above: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Σ_j x_j^p - 1 of rows x ≥ 0, and how far Newton's method would raise the threshold, never down."""
    if p == 1:
        surplus, slope = above.sum(-1, keepdim=True) - 1, above.sign().sum(-1, keepdim=True)
    elif p == 2:
        surplus, slope = (above * above).sum(-1, keepdim=True) - 1, 2 * above.sum(-1, keepdim=True)
    else:
        steep = above.pow(p - 1)
        slope = p * steep.sum(-1, keepdim=True)
        surplus = steep.mul_(above).sum(-1, keepdim=True) - 1
    return surplus, (surplus / slope).clamp_min_(0)


def _by_halving(scores: Tensor, alpha: float, weights: Tensor) -> Tensor:
    """The same for any α, where Newton's method would overstep: halves the interval until no number lies between."""
    p = 1 / (alpha - 1)
    z = scores * (alpha - 1)
    low, high = torch.full_like(z[:, :1], -1), torch.zeros_like(z[:, :1])
    for _ in range(200):
        middle = (low + high) / 2
        if bool(((middle == low) | (middle == high)).all()):
            break
        over = torch.sub(z, middle, out=weights).relu_().pow_(p).sum(-1, keepdim=True) >= 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    low.masked_fill_(z.amax(-1, keepdim=True).isnan(), torch.nan)
    torch.sub(z, low, out=weights).relu_().pow_(p)
    return low


def _slopes(weights: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """s_ij = α_ij^(2-α), 0 where α_ij is 0, and its sums `[..., 1]`, 1 in a dead row."""
    slopes = weights.sign() if alpha == 2 else _power(weights, 2 - alpha)
    total = slopes.sum(-1, keepdim=True)
    return slopes, total.masked_fill(total == 0, 1)


def _pull(weights: Tensor, by_weights: Tensor, by_numbers: Tensor | None, alpha: float) -> Tensor:
    """The gradient by the scores, in operations that can be differentiated again through the weights."""
    slopes, total = _slopes(weights, alpha)
    outside = slopes == 0  # there not even a NaN gets through
    by_weights = by_weights.masked_fill(outside, 0)
    gathered = (slopes * by_weights).sum(-1, keepdim=True)
    if by_numbers is not None:
        gathered = gathered - (alpha - 1) * by_numbers.masked_fill(outside.all(-1, keepdim=True), 0)
    return slopes * (by_weights - gathered / total)


def _pull_into(weights: Tensor, by_weights: Tensor, by_numbers: Tensor | None, alpha: float, out: Tensor) -> None:
    """The same for rows `[n, S]`, written into `out` with as few passes as will do."""
    if alpha == 2:
        slopes = weights.sign()
    elif alpha == 1.5:  # w / √w: torch's own √ takes several times as long
        slopes = weights.clamp_min(torch.finfo(weights.dtype).tiny).rsqrt_().mul_(weights)
    else:
        slopes = _power(weights, 2 - alpha)
    total = slopes.sum(-1, keepdim=True).clamp_min_(0.5)  # of the living at least 1
    gathered = torch.mul(slopes, by_weights, out=out).sum(-1, keepdim=True)
    if by_numbers is not None:
        gathered.sub_(by_numbers, alpha=alpha - 1)
    if bool(gathered.isfinite().all()):
        out.addcmul_(slopes, gathered.div_(total), value=-1)
    else:
        out.copy_(_pull(weights, by_weights, by_numbers, alpha))


def _power(base: Tensor, exponent: float) -> Tensor:
    """x^p of numbers x ≥ 0, and 0 where x is 0, where the power or its slope may be infinite."""
    zero = base == 0
    return base.masked_fill(zero, 1).pow(exponent).masked_fill(zero, 0)


def _is_all_true(flags: Tensor) -> bool:
    """Whether every flag is set; reads nothing twice that is expanded, and reads bytes, whose minimum is soon found."""
    once = flags[tuple(slice(1) if step == 0 else slice(None) for step in flags.stride())]
    return not flags.numel() or bool(once.contiguous().view(torch.uint8).min())


def _pieces(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Rows `[n, …]` of every tensor, as many at a time as stay in a core's cache from one pass to the next."""
    rows = [None if t is None else t.reshape(-1, t.shape[-1]) for t in tensors]
    first = next(t for t in rows if t is not None)
    size = max(1, PIECE // first.shape[-1]) if first.device.type == "cpu" else max(1, len(first))
    for start in range(0, len(first), size):
        yield tuple(None if t is None else t[start : start + size] for t in rows)


STEPS = 4  # of Newton's method on every part of the rows
PIECE = 2**18  # scores


class Sigmoid(Normalizer):
    """α_ij = 1 / (1 + exp(-e_ij)): every key for itself; rows sum to anything, and nothing competes.

    Its row number is the row's sum. Source: Ramapuram et al. 2024, section 3 (without their bias -ln S: add it as
    bias= where rows are long).
    """

    skips = True

    def again(self, scores: Tensor, numbers: Tensor) -> Tensor:  # noqa: ARG002
        return scores.sigmoid()

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        weights = scores.sigmoid().masked_fill(~allowed, 0)
        return weights, weights.sum(-1)


class Hard(Normalizer):
    """One key for each query: the one with the highest score (the lower index on a tie), or one drawn by the softmax.

    Weights are 0 and 1; the gradient is the softmax's (straight through: Bengio et al. 2013, section 4). For
    REINFORCE (Xu et al. 2015, section 4.1) take the softmax's map and its `sample()`, which gives the draw's
    log-probability. Its row number is the chosen key, -1 in a dead row.

    Args:
        sample: draw with torch's generator instead of taking the highest.
    """

    def __init__(self, sample: bool = False) -> None:
        super().__init__()
        self.sample = sample

    def forward(self, scores: ScoreRows, allowed: AllowedRows) -> tuple[ScoreRows, RowNumbers]:
        soft, _ = Softmax()(scores, allowed)
        if not scores.shape[-1]:
            return soft, soft.sum(-1) - 1
        dead = (soft == 0).all(-1, keepdim=True)
        if self.sample:
            share = soft.detach().masked_fill(dead, 1).flatten(0, -2)
            chosen = torch.multinomial(share, 1).view(dead.shape)
        else:
            chosen = soft.argmax(-1, keepdim=True)
        hard = torch.zeros_like(soft).scatter(-1, chosen, 1).masked_fill(dead, 0)
        hard = torch.where(soft.isnan(), soft, hard)
        return hard + (soft - soft.detach()), chosen.masked_fill(dead, -1).squeeze(-1).to(soft.dtype)


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

NAMED: dict[str, Callable[[], Normalizer]] = {
    "softmax": Softmax, "sparsemax": lambda: Entmax(2.0), "entmax15": lambda: Entmax(1.5), "sigmoid": Sigmoid,
    "softmax1": Sink, "uniform": Uniform,
}  # fmt: skip


SHARED = {name: make() for name, make in NAMED.items()}  # none of them has parameters


def as_normalizer(normalizer: NormalizerLike) -> Normalizer:
    """The normaliser that a name, a `Normalizer` or a callable stands for.

    Raises:
        ChoiceError: an unknown name, with the nearest spelling.
    """
    if isinstance(normalizer, Normalizer):
        return normalizer
    if isinstance(normalizer, str) and normalizer in NAMED:
        return SHARED[normalizer]
    if not isinstance(normalizer, str) and callable(normalizer):
        return WholeRows(normalizer)
    raise unknown("normalizer", normalizer, NAMED)
