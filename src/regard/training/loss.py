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

from regard.attention.kernels.kernel import derivatives, is_differentiated
from regard.attention.tracing import are_hidden, goes_forward, is_traced, without_autocast
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
    r_drop: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum over tokens of -Σ_v q_v log softmax(W h + b)_v, and of -log p(y) alone (the second has no gradient).

    With R-Drop, the rows are the same tokens twice, first all of them and then all again, and the first sum has, for
    the distributions p and p' that a token is given, r_drop · ½ (KL(p ‖ p') + KL(p' ‖ p)) besides (Wu et al. 2021,
    equation 2).

    At most 2²³ logits exist at a time; their gradient is taken at once, in their place, so none are kept.

    Args:
        hidden: `[n, h]`, one row per token.
        weight, bias: of the output layer.
        target: `[n]`, the true classes.
        smooth: from `smoothing`.
        dtype: of the products (bfloat16 for speed); the softmax is float32 in any case.
        keep: False at rows that do not count, as padding does; all count by default.
        r_drop: the weight of R-Drop; 0 is off.
    """
    if keep is not None and not are_hidden(hidden):
        hidden, target, keep = hidden[keep], target[keep], None
    if is_traced(hidden) or goes_forward(hidden, weight, bias):
        return _whole(hidden, weight, bias, target, smooth, dtype or hidden.dtype, keep, r_drop)
    loss, nll = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, target, smooth, dtype or hidden.dtype, keep, r_drop
    )
    return loss, nll


def _whole(
    hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, smooth: Smoothing, dtype: torch.dtype,
    keep: Tensor | None, r_drop: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same in operations that a graph can hold, from all logits at once."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    with without_autocast(hidden.device.type):
        log_p = ((hidden.to(dtype) @ weight.to(dtype).T).to(wide) + bias.to(dtype).to(wide)).log_softmax(-1)
    here, spread = log_p.gather(1, target[:, None])[:, 0], log_p.sum(-1)
    if smooth.left_out is not None:
        spread = spread - log_p[:, smooth.left_out]
    each = smooth.a * here + smooth.b * spread
    if r_drop:
        one, other = log_p.chunk(2)
        apart = ((one.exp() - other.exp()) * (one - other)).sum(-1) / 2
        each = each - r_drop / 2 * apart.repeat(2)
    if keep is not None:
        here, each = (part.masked_fill(~keep, 0) for part in (here, each))
    return -each.sum(), -here.sum().detach()


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, target, smooth, dtype, keep, r_drop):  # type: ignore[no-untyped-def]
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        copies = 2 if r_drop else 1
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, shift = hidden.to(dtype), weight.to(dtype), bias.to(dtype).to(wide)
            loss, nll = hidden.new_zeros((), dtype=wide), hidden.new_zeros((), dtype=wide)
            wants = any(ctx.needs_input_grad)
            gradients = [torch.empty_like(h), _nothing(weight, wide), torch.zeros_like(bias, dtype=wide)]
            for rows in _slices(len(h) // copies, max(1, LOGITS // (copies * max(1, len(w))))):
                of_copies = [
                    slice(rows.start + first, rows.stop + first) for first in range(0, len(h), len(h) // copies)
                ]
                logits = [h[own] @ w.T for own in of_copies]
                for part in _slices(len(logits[0]), BLOCK // copies):
                    own = [slice(one.start + part.start, one.start + part.stop) for one in of_copies]
                    blocks = [
                        _Block(each[part] + shift, target[n], smooth, None if keep is None else keep[n])
                        for each, n in zip(logits, own, strict=True)
                    ]
                    for block in blocks:
                        nll -= block.here.sum()
                        loss -= smooth.a * block.here.sum() + smooth.b * block.spread.sum()
                    pulls: list[Tensor | None] = [None]
                    if r_drop:
                        apart, pulls = _apart(blocks[0], blocks[1], wants)
                        loss += r_drop * apart
                    if wants:
                        for each, block, pull in zip(logits, blocks, pulls, strict=True):
                            change = block.towards()
                            if pull is not None:
                                change.add_(pull, alpha=r_drop)
                            change = block.counted(change)
                            gradients[2] += change.sum(0)
                            each[part] = change
                if wants:
                    for each, one in zip(logits, of_copies, strict=True):
                        gradients[0][one] = each @ w
                        if one.start:
                            gradients[1] += each.T @ h[one]
                        else:
                            gradients[1] = (each.T @ h[one]).to(wide)
        if hidden.is_inference():  # features of a frozen encoder; such a tensor cannot be saved
            hidden = hidden.clone()
        ctx.save_for_backward(*gradients, hidden, weight, bias)
        ctx.settings = target, smooth, dtype, keep, r_drop
        ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx, upstream, _):  # type: ignore[no-untyped-def]
        *found, hidden, weight, bias = ctx.saved_tensors
        if is_differentiated(upstream):  # the second derivative is the plain formula's
            plain = derivatives(lambda *inputs: _whole(*inputs, *ctx.settings)[0], (hidden, weight, bias), (), upstream)
            return (*plain, None, None, None, None, None)
        gradients = ((gradient * upstream).to(dtype) for gradient, dtype in zip(found, ctx.dtypes, strict=True))
        return (*gradients, None, None, None, None, None)


class _Block:
    """Some rows of logits, and their softmax while it is in the cache.

    Attributes:
        logits, p, lse: the logits, their softmax, and each row's log-sum-exp: its largest logit, less the logarithm of
            that class's probability.
        here, spread: log p(y), and Σ_v log p(v) over the smoothed classes, of each row; 0 where it does not count.
    """

    def __init__(self, logits: Tensor, target: Tensor, smooth: Smoothing, keep: Tensor | None) -> None:
        self.logits, self.target, self.smooth, self.keep = logits, target, smooth, keep
        self.p = torch.softmax(logits, -1)
        self.lse = logits.amax(-1) - self.p.amax(-1).log()
        classes = logits.shape[-1] - (smooth.left_out is not None)
        spread = logits.sum(-1) - classes * self.lse
        if smooth.left_out is not None:
            spread = spread - logits[:, smooth.left_out]
        self.here = self.counted(logits.gather(1, target[:, None])[:, 0] - self.lse)
        self.spread = self.counted(spread)

    def counted(self, rows: Tensor) -> Tensor:
        """Rows, or a number of each, 0 where they do not count."""
        if self.keep is None:
            return rows
        return rows.masked_fill_(~self.keep.view(-1, *(1,) * (rows.ndim - 1)), 0)

    def towards(self) -> Tensor:
        """The derivative by the logits, p - q for a target q of mass 1, in the place of p."""
        change = self.p.sub_(self.smooth.b)
        if self.smooth.left_out is not None:
            change[:, self.smooth.left_out] += self.smooth.b
        less = torch.full_like(self.target[:, None], -self.smooth.a, dtype=change.dtype)
        return change.scatter_add_(1, self.target[:, None], less)


def _apart(one: _Block, other: _Block, wants: bool) -> tuple[Tensor, list[Tensor | None]]:
    """½ (KL(p ‖ p') + KL(p' ‖ p)) of two blocks, summed over rows, and its derivatives by the logits, if wanted.

    The derivative by the logits of p is ½ (p (log p - log p' - KL(p ‖ p') + 1) - p').
    """
    ratio = one.logits.sub_(other.logits).sub_((one.lse - other.lse)[:, None])  # log p - log p'
    forth, back = (one.p * ratio).sum(-1, keepdim=True), -(other.p * ratio).sum(-1, keepdim=True)
    pulls: list[Tensor | None] = [None, None]
    if wants:
        pulls[0] = (ratio - (forth - 1)).mul_(one.p).sub_(other.p).div_(2)
        pulls[1] = (1 - back - ratio).mul_(other.p).sub_(one.p).div_(2)
    return one.counted((forth + back)[:, 0]).sum() / 2, pulls


def _nothing(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros of this shape that take no memory."""
    return like.new_zeros((), dtype=dtype).expand_as(like)


def _slices(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count`, equal to one another within 1."""
    parts = -(-count // size)
    return (slice(count * n // parts, count * (n + 1) // parts) for n in range(parts))
