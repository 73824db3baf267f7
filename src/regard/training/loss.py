"""Cross-entropy with label smoothing in four definitions, without dense targets and in chunks of logits.

A smoothed target of true class y gives weight a + b to y and b to every other smoothed class:

| flavour | y gets | every other class gets | PAD gets |
|---|---|---|---|
| torch (`cross_entropy(label_smoothing=ε)`) | 1 - ε + ε/V | ε/V | ε/V |
| mxnet (gluon-nlp, Sockeye's default; the same target as torch's) | 1 - ε + ε/V | ε/V | ε/V |
| fairseq (`label_smoothed_cross_entropy`) | 1 - ε | ε/(V-1) | ε/(V-1) |
| joeynmt (KL against a dense target) | 1 - ε | ε/(V-2) | 0 |

The cross-entropy against that target is the KL divergence plus the target's entropy, a constant.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from regard.attention.tracing import are_hidden, is_traced
from regard.errors import unknown

FLAVOURS = ("torch", "fairseq", "joeynmt", "mxnet")
LOGITS = 2**23  # that exist at one time, at most, if they are of more than one token
BLOCK = 64  # tokens whose softmax is computed at one time: its numbers stay in the cache from step to step


@dataclass(frozen=True)
class Smoothing:
    """A smoothed target: `a` + `b` on the true class, `b` on every other class except the left-out one."""

    a: float
    b: float
    left_out: int | None

    def entropy(self, vocabulary: int) -> float:
        """Entropy of the target in nats: cross-entropy minus KL divergence."""
        classes = vocabulary - (self.left_out is not None)
        masses = [self.a + self.b] + [self.b] * (classes - 1)
        return -sum(p * log(p) for p in masses if p > 0)


def smoothing(flavour: str, epsilon: float, vocabulary: int, pad: int) -> Smoothing:
    """The target of a named flavour with smoothing ε.

    Raises:
        ChoiceError: an unknown flavour.
    """
    match flavour:
        case "torch" | "mxnet":
            return Smoothing(1 - epsilon, epsilon / vocabulary, None)
        case "fairseq":
            return Smoothing(1 - epsilon - epsilon / (vocabulary - 1), epsilon / (vocabulary - 1), None)
        case "joeynmt":
            return Smoothing(1 - epsilon - epsilon / (vocabulary - 2), epsilon / (vocabulary - 2), pad)
    raise unknown("label smoothing", flavour, FLAVOURS)


def cross_entropy(
    hidden: Float[Tensor, "n h"],
    weight: Float[Tensor, "V h"],
    bias: Float[Tensor, "V"],
    target: Int[Tensor, "n"],
    smooth: Smoothing,
    dtype: torch.dtype | None = None,
    keep: Bool[Tensor, "n"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum over tokens of -Σ_v q_v log softmax(W h + b)_v, and of -log p(y) alone (the second has no gradient).

    At most 2²³ logits exist at a time; their gradient is taken at once, in their place, so none are kept.

    Args:
        hidden: `[n, h]`, one row per token.
        weight, bias: of the output layer.
        target: `[n]`, the true classes.
        smooth: from `smoothing`.
        dtype: of the products (bfloat16 for speed); the softmax is float32 in any case.
        keep: False at rows that do not count, as padding does; all count by default.
    """
    if keep is not None and not are_hidden(hidden):
        hidden, target, keep = hidden[keep], target[keep], None
    if is_traced(hidden):
        return _whole(hidden, weight, bias, target, smooth, dtype or hidden.dtype, keep)
    loss, nll = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, target, smooth, dtype or hidden.dtype, keep
    )
    return loss, nll


def symmetric_kl(
    first: Float[Tensor, "n h"],
    second: Float[Tensor, "n h"],
    weight: Float[Tensor, "V h"],
    bias: Float[Tensor, "V"],
    dtype: torch.dtype | None = None,
    keep: Bool[Tensor, "n"] | None = None,
) -> Float[Tensor, ""]:
    """½ Σ_v (p_v - q_v) (log p_v - log q_v), summed over tokens, for p = softmax(W h + b) and q = softmax(W h' + b).

    Chunks and gradients are as those of `cross_entropy`.

    Args:
        first, second: `[n, h]`, h and h', a row per token.
        weight, bias, dtype, keep: as `cross_entropy` takes them.
    """
    if keep is not None and not are_hidden(first):
        first, second, keep = first[keep], second[keep], None
    if is_traced(first):
        return _symmetric_kl(first, second, keep, weight, bias, dtype or first.dtype)
    divergence: Tensor = _ChunkedSymmetricKL.apply(  # type: ignore[no-untyped-call]
        first, second, weight, bias, dtype or first.dtype, keep
    )
    return divergence


def _symmetric_kl(
    first: Tensor, second: Tensor, keep: Tensor | None, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    """The same in operations that a graph can hold, from all logits at once."""
    wide = torch.promote_types(first.dtype, torch.float32)
    with torch.autocast(first.device.type, enabled=False):
        p, q = (
            torch.addmm(bias.to(dtype), hidden.to(dtype), weight.to(dtype).T).to(wide).log_softmax(-1)
            for hidden in (first, second)
        )
    each = ((p.exp() - q.exp()) * (p - q)).sum(-1)
    return (each if keep is None else each.masked_fill(~keep, 0)).sum() / 2


def _whole(
    hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, smooth: Smoothing, dtype: torch.dtype,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same in operations that a graph can hold, from all logits at once."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    log_p = torch.addmm(bias.to(dtype), hidden.to(dtype), weight.to(dtype).T).to(wide).log_softmax(-1)
    here, spread = log_p.gather(1, target[:, None])[:, 0], log_p.sum(-1)
    if smooth.left_out is not None:
        spread = spread - log_p[:, smooth.left_out]
    if keep is not None:
        here, spread = (part.masked_fill(~keep, 0) for part in (here, spread))
    return -(smooth.a * here.sum() + smooth.b * spread.sum()), -here.sum().detach()


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, target, smooth, dtype, keep):  # type: ignore[no-untyped-def]
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, shift = hidden.to(dtype), weight.to(dtype), bias.to(dtype).to(wide)
            loss, nll = hidden.new_zeros((), dtype=wide), hidden.new_zeros((), dtype=wide)
            wants = any(ctx.needs_input_grad)
            gradients = [torch.empty_like(h), _nothing(weight, wide), torch.zeros_like(bias, dtype=wide)]
            for rows in _slices(len(h), max(1, LOGITS // max(1, len(w)))):
                logits = h[rows] @ w.T
                for part in _slices(len(logits), BLOCK):
                    own = slice(rows.start + part.start, rows.start + part.stop)
                    counted = None if keep is None else keep[own]
                    here, spread, change = _of_block(logits[part] + shift, target[own], smooth, counted, wants)
                    nll -= here
                    loss -= smooth.a * here + smooth.b * spread
                    if change is not None:
                        gradients[2] += change.sum(0)
                        logits[part] = change
                if wants:
                    gradients[0][rows] = logits @ w
                    if rows.start:
                        gradients[1] += logits.T @ h[rows]
                    else:
                        gradients[1] = (logits.T @ h[rows]).to(wide)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, _):  # type: ignore[no-untyped-def]
        gradients = (
            (gradient * upstream).to(dtype) for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, None, None, None, None)


class _ChunkedSymmetricKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, first, second, weight, bias, dtype, keep):  # type: ignore[no-untyped-def]
        wide = torch.float64 if first.dtype == torch.float64 else torch.float32
        with torch.autocast(first.device.type, enabled=False):
            states, w, shift = [first.to(dtype), second.to(dtype)], weight.to(dtype), bias.to(dtype).to(wide)
            divergence, wants = first.new_zeros((), dtype=wide), any(ctx.needs_input_grad)
            of_states, of_weight = [torch.empty_like(h) for h in states], torch.zeros_like(weight, dtype=wide)
            of_bias = torch.zeros_like(bias, dtype=wide)
            for rows in _slices(len(first), max(1, LOGITS // (2 * max(1, len(w))))):
                logits = [h[rows] @ w.T for h in states]
                for part in _slices(len(logits[0]), BLOCK):
                    counted = None if keep is None else keep[rows.start + part.start : rows.start + part.stop]
                    own, changes = _divergence_of_block(logits[0][part] + shift, logits[1][part] + shift, counted)
                    divergence += own
                    for each, change in zip(logits, changes, strict=True):
                        of_bias += change.sum(0)
                        each[part] = change
                if wants:
                    for each, gradient, h in zip(logits, of_states, states, strict=True):
                        gradient[rows] = each @ w
                        of_weight += each.T @ h[rows]
        ctx.save_for_backward(*of_states, of_weight, of_bias)
        ctx.dtypes = first.dtype, second.dtype, weight.dtype, bias.dtype
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        gradients = (
            (gradient * upstream).to(dtype) for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, None, None)


def _divergence_of_block(one: Tensor, other: Tensor, keep: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """½ (KL(p ‖ q) + KL(q ‖ p)) of two blocks of logits, summed over rows, and its derivatives by both.

    The derivative by the logits of p is ½ (p (log p - log q - KL(p ‖ q) + 1) - q).
    """
    p, q = torch.softmax(one, -1), torch.softmax(other, -1)
    lse, other_lse = (
        logits.amax(-1, keepdim=True) - shares.amax(-1, keepdim=True).log() for logits, shares in ((one, p), (other, q))
    )
    ratio = one.sub_(other).sub_(lse - other_lse)  # log p - log q
    forth, back = (p * ratio).sum(-1, keepdim=True), -(q * ratio).sum(-1, keepdim=True)
    changes = (ratio - (forth - 1)).mul_(p).sub_(q).div_(2), (1 - back - ratio).mul_(q).sub_(p).div_(2)
    if keep is not None:
        hidden = ~keep[:, None]
        forth, back = forth.masked_fill(hidden, 0), back.masked_fill(hidden, 0)
        changes = changes[0].masked_fill_(hidden, 0), changes[1].masked_fill_(hidden, 0)
    return (forth.sum() + back.sum()) / 2, changes


def _of_block(
    logits: Tensor, target: Tensor, smooth: Smoothing, keep: Tensor | None, wants: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The sums over tokens of log p(y) and of Σ_v log p(v) over the smoothed classes; and ∂loss/∂logits, if wanted.

    The log-sum-exp of a row is its largest logit, less the logarithm of that class's probability.
    """
    p = torch.softmax(logits, -1)
    lse = logits.amax(-1) - p.amax(-1).log()
    here = logits.gather(1, target[:, None])[:, 0] - lse
    classes = logits.shape[-1] - (smooth.left_out is not None)
    spread = logits.sum(-1) - classes * lse
    if smooth.left_out is not None:
        spread = spread - logits[:, smooth.left_out]
    if keep is not None:
        here, spread = here.masked_fill(~keep, 0), spread.masked_fill(~keep, 0)
    if not wants:
        return here.sum(), spread.sum(), None
    change = _towards(p, target, smooth)
    return here.sum(), spread.sum(), change if keep is None else change.masked_fill_(~keep[:, None], 0)


def _towards(p: Tensor, target: Tensor, smooth: Smoothing) -> Tensor:
    """∂loss/∂logits = p - q, for a target q of mass 1, in the place of p."""
    change = p.sub_(smooth.b)
    if smooth.left_out is not None:
        change[:, smooth.left_out] += smooth.b
    return change.scatter_add_(1, target[:, None], torch.full_like(target[:, None], -smooth.a, dtype=change.dtype))


def _nothing(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros of this shape that take no memory."""
    return like.new_zeros((), dtype=dtype).expand_as(like)


def _slices(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count`, equal to one another within 1."""
    parts = -(-count // size)
    return (slice(count * n // parts, count * (n + 1) // parts) for n in range(parts))
