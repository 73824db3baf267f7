"""Rows of entmax, α_ij = max(0, (α-1) e_ij - τ_i)^(1/(α-1)), by Newton's method, and their derivatives.

Source: Peters et al. 2019, equation 10; the derivative is their equation 14.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from regard.attention.tracing import are_hidden, goes_forward

NEAR = 1.02
ROUNDING = 1.001  # a sum of weights above it is no rounding
STEPS = 4  # of Newton's method on every part of the rows
PIECE = 2**20  # scores: larger pieces leave the cache, smaller ones make the threads wait for each other more often


def entmax(scores: Tensor, allowed: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Weights `[*batch, T, S]` and thresholds τ `[*batch, T]` of scores and bools of one shape, for α > 1."""
    # half precision would not find the root, nor float32 that of an α near 1, whose power is large
    wide = scores.to(torch.promote_types(scores.dtype, torch.float64 if alpha < NEAR else torch.float32))
    if torch.compiler.is_compiling():  # dynamo follows no autograd.Function that has a forward derivative
        weights, thresholds = _linearized(wide, allowed, alpha)
    else:
        weights, thresholds = _Entmax.apply(wide, allowed, alpha)  # type: ignore[no-untyped-call]
    return weights.to(scores.dtype), thresholds.to(scores.dtype)


class _Entmax(torch.autograd.Function):
    """Entmax as one step of differentiation, which remembers nothing but the weights α_ij.

    With s_ij = α_ij^(2-α) where α_ij > 0, else 0 (Peters et al. 2019, equation 14), and with the sums over j':

        dα_ij = s_ij (de_ij - Σ s_ij' de_ij' / Σ s_ij'),    dτ_i = (α-1) Σ s_ij' de_ij' / Σ s_ij'.
    """

    @staticmethod
    def forward(scores: Tensor, allowed: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        if are_hidden(scores):
            return _by_shapes(scores, allowed, alpha)
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
        given = [one for one in (weights, by_weights, by_numbers) if one is not None]
        if (
            torch.is_grad_enabled() or are_hidden(weights) or _is_batched(by_weights, by_numbers)
            or goes_forward(*given)  # last: torch cannot say this of a batched tensor
        ):  # fmt: skip
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


def _climb(above: Tensor, numbers: Tensor, p: float, steps: int = 64) -> None:
    """Newton's method to the end: takes from `above` = max(0, (α-1) e - τ) what it adds to `numbers` = τ, in place.

    Once fewer than half of the rows are left, those go on by themselves. Rounding may keep a row from the end for
    ever, so there are at most so many steps.
    """
    eps = torch.finfo(above.dtype).eps
    # from p = 2 on, a step leaves less than S/2 times the square of the surplus before it
    enough = (eps / above.shape[-1]) ** 0.5 if p >= 2 else 4 * eps
    while steps > 0:
        steps -= 1
        surplus, step = _newton(above, p)
        above.sub_(step).relu_()
        numbers.add_(step)
        left = (surplus > enough).squeeze(-1).nonzero().squeeze(-1)
        if 2 * len(left) < len(above):
            break
    if steps and len(left):
        few, their = above.index_select(0, left), numbers.index_select(0, left)
        _climb(few, their, p, steps)
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
    weights.div_(_surplus(weights))
    return low


def _surplus(weights: Tensor) -> Tensor:
    """What weights `[..., S]` are divided by: 1, but their sum where no number is near enough to τ (an α of 20)."""
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > ROUNDING, total, 1)


def _by_shapes(scores: Tensor, allowed: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Weights and thresholds in a number of operations that no score changes.

    In closed form from sorted scores for α = 2 (Martins and Astudillo 2016, algorithm 1) and α = 1.5 (Peters et al.
    2019, algorithm 2); for any other α by halving an interval as often as its numbers have digits.
    """
    scores = torch.where(allowed, scores, -torch.inf)
    highest = scores.amax(-1, keepdim=True)
    dead = highest == -torch.inf
    highest = highest.masked_fill(dead, 0)
    z = (scores - highest) * (alpha - 1)
    # τ is -1 or more: what lies below has no share
    threshold = _closed_form(z.clamp_min(-2), alpha) if alpha in (1.5, 2) else _halved(z, alpha)
    weights = power((z - threshold).relu(), 1 / (alpha - 1)).masked_fill(dead, 0)
    weights = weights / _surplus(weights)
    number = (threshold + highest * (alpha - 1)).masked_fill(dead, torch.inf)
    return weights, number.squeeze(-1)


def _linearized(scores: Tensor, allowed: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The same with the first derivative of `_Entmax`, in operations that a graph can hold."""
    weights, numbers = _by_shapes(scores.detach(), allowed, alpha)
    slopes, total = _slopes(weights, alpha)
    change = torch.where(slopes == 0, 0, scores)
    change = change - change.detach()  # 0, and its derivative is that of the scores
    common = (slopes * change).sum(-1, keepdim=True) / total
    return weights + slopes * (change - common), numbers + (alpha - 1) * common.squeeze(-1)


def _closed_form(z: Tensor, alpha: float) -> Tensor:
    """τ `[..., 1]` of scores (α-1) e whose highest is 0."""
    ordered = z.sort(-1, descending=True).values
    count = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    total = ordered.cumsum(-1)
    if alpha == 2:
        thresholds = (total - 1) / count
    else:
        mean, square = total / count, ordered.square().cumsum(-1) / count
        thresholds = mean - ((1 - count * (square - mean.square())) / count).clamp_min(0).sqrt()
    support = (thresholds <= ordered).sum(-1, keepdim=True)
    return thresholds.gather(-1, support.clamp_min(1) - 1)


def _halved(z: Tensor, alpha: float) -> Tensor:
    """τ `[..., 1]` of scores (α-1) e whose highest is 0: it lies between -1 and 0, of n equal keys at -n^(1-α).

    So the interval that is halved is that of log2(-τ).
    """
    p = 1 / (alpha - 1)
    double = z.dtype == torch.float64
    low, high = torch.zeros_like(z[..., :1]), torch.full_like(z[..., :1], -1022 if double else -126)
    for _ in range(62 if double else 32):
        middle = (low + high) / 2
        over = power((z + middle.exp2()).relu(), p).sum(-1, keepdim=True) >= 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (-low.exp2()).masked_fill(z.amax(-1, keepdim=True).isnan(), torch.nan)


def _slopes(weights: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """s_ij = α_ij^(2-α), 0 where α_ij is 0, and its sums `[..., 1]`, 1 in a dead row."""
    slopes = weights.sign() if alpha == 2 else power(weights, 2 - alpha)
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
        slopes = power(weights, 2 - alpha)
    total = slopes.sum(-1, keepdim=True).clamp_min_(0.5)  # of the living at least 1
    gathered = torch.mul(slopes, by_weights, out=out).sum(-1, keepdim=True)
    if by_numbers is not None:
        gathered.sub_(by_numbers, alpha=alpha - 1)
    if bool(gathered.isfinite().all()):
        out.addcmul_(slopes, gathered.div_(total), value=-1)
    else:
        out.copy_(_pull(weights, by_weights, by_numbers, alpha))


def power(base: Tensor, exponent: float) -> Tensor:
    """x^p of numbers x ≥ 0, and 0 where x is 0, where the power or its slope may be infinite."""
    zero = base == 0
    return base.masked_fill(zero, 1).pow(exponent).masked_fill(zero, 0)


def _is_batched(*tensors: Tensor | None) -> bool:
    """Whether `torch.autograd.grad(is_grads_batched=True)` runs, whose tensors cannot be written into."""
    return any(torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors if t is not None)


def _is_all_true(flags: Tensor) -> bool:
    """Whether every flag is set; reads nothing twice that is expanded, and reads bytes, whose minimum is soon found."""
    once = flags[tuple(slice(1) if step == 0 else slice(None) for step in flags.stride())]
    return not flags.numel() or bool(once.contiguous().view(torch.uint8).min())


def _pieces(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Rows `[n, …]` of every tensor, as many at a time as stay in the cache from one pass to the next."""
    rows = [None if t is None else t.reshape(-1, t.shape[-1]) for t in tensors]
    first = next(t for t in rows if t is not None)
    size = max(1, PIECE // first.shape[-1]) if first.device.type == "cpu" else max(1, len(first))
    for start in range(0, len(first), size):
        yield tuple(None if t is None else t[start : start + size] for t in rows)
