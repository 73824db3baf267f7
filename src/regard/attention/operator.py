"""attend: the operator that everything else is made of. Read this first.

    output = normalize(score(query, key) + bias, mask) · value

What it means stands in `kernels/reference.py`; here the inputs are checked and a kernel is chosen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from regard.attention.biases import BiasLike
from regard.attention.kernels import additive, blockwise, fused, linear, reference, windowed
from regard.attention.kernels.reference import is_poisoned, only_seen
from regard.attention.masks import MaskLike
from regard.attention.normalizers import NormalizerLike
from regard.attention.scores import ScoreLike
from regard.attention.spec import Spec, make_spec
from regard.attention.tiles import BLOCK, empty_share
from regard.attention.watch import computing, is_attended, notify
from regard.errors import KernelError, unknown
from regard.shapes import batch_shape, check, share_heads

Some = Float[Tensor, "..."]
Kernel = Callable[..., tuple[Tensor, Tensor]]

# those that can do less stand before those that can do more
KERNELS: dict[str, Kernel] = {
    "windowed": windowed.windowed,
    "fused": fused.fused,
    "additive": additive.additive,
    "linear": linear.linear,
    "blockwise": blockwise.blockwise,
    "reference": reference.reference,
}
REFUSALS = {
    "windowed": windowed.refusal,
    "fused": fused.refusal,
    "additive": additive.refusal,
    "linear": linear.refusal,
    "blockwise": blockwise.refusal,
}
LARGE = 2**20  # pairs from which on it pays to ask what a mask leaves empty
EMPTY = 0.1  # the share of the pairs that must be empty for it


@dataclass(frozen=True)
class Plan:
    """Which kernel will do the work, and why.

    Attributes:
        kernel: its name.
        why: one sentence.
        refused: every faster kernel that was passed over, with the reason.
        extra_bytes: memory needed beyond inputs and output, about.
        flops: multiplications and additions of the two products, all pairs counted.
    """

    kernel: str
    why: str
    refused: dict[str, str]
    extra_bytes: int
    flops: int


def attend(
    query: Some,
    key: Some,
    value: Some,
    *,
    score: ScoreLike = "scaled_dot",
    normalizer: NormalizerLike = "softmax",
    mask: MaskLike | None = None,
    bias: BiasLike | None = None,
    dropout: float = 0.0,
    kernel: str = "auto",
) -> Some:
    """output_i = Σ_j α_ij v_j, with α_i = normalize(score(q_i, k_1 … k_S) + bias_i, mask_i).

    A query that may look nowhere gets output 0 and gradient 0; what a masked key or value holds,
    NaN included, never reaches the query that may not look at it.

    Args:
        query: `[*batch, T, d_k]`; heads are one of the batch axes, `[batch, heads, T, d_k]`.
        key: `[*batch, S, d_k]`; batch axes equal or 1; the heads (axis -3) may be fewer where they divide.
        value: `[*batch, S, d_v]`.
        score: a name, a `Score`, or a callable (query_tile, key_tile) -> score_tile.
        normalizer: a name, a `Normalizer`, or a callable (scores, allowed) -> weights.
        mask: a regard mask or a bool tensor that broadcasts to `[*batch, T, S]`; True = may look.
        bias: a float tensor that broadcasts to `[*batch, T, S]`, added before masking.
        dropout: probability of dropping a weight, after the normaliser.
        kernel: "auto", or the kernel that must do it: "reference", "fused", "windowed", "additive",
            "linear", "blockwise".

    Returns:
        `[*batch, T, d_v]` in value's dtype.

    Raises:
        ShapeError: sizes that do not fit, with argument, axis and both sizes.
        ChoiceError: an unknown name, nearest spelling first; a float mask.
        KernelError: the kernel asked for cannot do this.

    Source: Bahdanau et al. 2015, section 3.1; Vaswani et al. 2017, equation 1.
    """
    spec = make_spec(score, normalizer, mask, bias, dropout)
    check(query, key, value)
    shared_key, shared_value = share_heads(query, key), share_heads(query, value)
    name = _choose(query, shared_key, shared_value, spec, kernel)[0]
    answer = notify(query, key, value, spec)
    if answer is not None:
        return answer
    if not is_attended():
        return _compute(name, query, shared_key, shared_value, spec)
    with computing():
        return _compute(name, query, shared_key, shared_value, spec)


def _compute(name: str, query: Some, key: Some, value: Some, spec: Spec) -> Some:
    seed = int(torch.randint(2**31, ())) if spec.dropout else 0
    inputs = (query, key, value)
    if torch.is_autocast_enabled(query.device.type):
        with torch.autocast(query.device.type, enabled=False):
            return _checked(name, inputs, spec, seed)
    return _checked(name, inputs, spec, seed)


def _checked(name: str, inputs: tuple[Tensor, Tensor, Tensor], spec: Spec, seed: int) -> Tensor:
    """A kernel's output; under a mask, nothing of what a query may not look at reaches it."""
    query, key, _ = inputs
    if spec.mask is None or name == "reference":
        return KERNELS[name](*inputs, spec, seed)[0]
    # a gradient may be spoiled where the output is not; torch's kernels spoil the output where they spoil anything
    early = name not in ("fused", "windowed") or (torch.is_grad_enabled() and any(t.requires_grad for t in inputs))
    if not (early and is_poisoned(*inputs)):
        output = KERNELS[name](*inputs, spec, seed)[0]
        # in torch's triangle the last query sees all that could spoil another; elsewhere a forbidden score may overflow
        triangle = name == "fused" and fused.is_whole(spec, (query.shape[-2], key.shape[-2]))
        if not is_poisoned(output[..., -1:, :] if triangle else output):
            return output
    inputs = only_seen(*inputs, spec.mask)
    if not is_poisoned(*inputs):
        output = KERNELS[name](*inputs, spec, seed)[0]
        if not is_poisoned(output):
            return output
    return blockwise.blockwise(*inputs, spec, seed, poisoned=True)[0]


def plan(
    query: Some,
    key: Some,
    value: Some,
    *,
    score: ScoreLike = "scaled_dot",
    normalizer: NormalizerLike = "softmax",
    mask: MaskLike | None = None,
    bias: BiasLike | None = None,
    dropout: float = 0.0,
    kernel: str = "auto",
) -> Plan:
    """Which kernel `attend` would use for the same arguments, and why; nothing is computed.

    Raises:
        ShapeError, ChoiceError, KernelError: as `attend`.
    """
    spec = make_spec(score, normalizer, mask, bias, dropout)
    check(query, key, value)
    key, value = share_heads(query, key), share_heads(query, value)
    name, why, refused = _choose(query, key, value, spec, kernel)
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    flops = 2 * prod(shape) * (key.shape[-1] + value.shape[-1])
    return Plan(name, why, refused, _extra_bytes(name, query, key, value, spec, shape), flops)


def _extra_bytes(name: str, query: Tensor, key: Tensor, value: Tensor, spec: Spec, shape: tuple[int, ...]) -> int:
    """About what a kernel's forward needs beside inputs and output."""
    wide = 8 if value.dtype == torch.float64 else 4
    pairs = prod(shape)
    if name == "reference":
        return 3 * pairs * wide
    if name == "linear":
        return linear.extra_bytes(query, key, value, spec, shape)
    if name in ("fused", "windowed"):
        if name == "fused" and fused.is_whole(spec, shape):
            return 0
        tables = fused.spread(spec, shape, query.device)
        return min(BLOCK, tables * shape[-2] * shape[-1]) * (wide + 1)
    return (query.numel() + key.numel() + value.numel() + 3 * min(BLOCK, pairs)) * wide


def _choose(query: Tensor, key: Tensor, value: Tensor, spec: Spec, kernel: str) -> tuple[str, str, dict[str, str]]:
    """The kernel, why, and why not each faster one."""
    if kernel not in ("auto", *KERNELS):
        raise unknown("kernel", kernel, ("auto", *KERNELS))
    if kernel != "auto":
        reason = REFUSALS[kernel](query, key, value, spec) if kernel in REFUSALS else None
        if reason:
            able = [name for name in KERNELS if name not in REFUSALS or not REFUSALS[name](query, key, value, spec)]
            raise KernelError(
                f"kernel {kernel!r} cannot do this: {reason}; kernel='auto' or {' or '.join(map(repr, able))} can"
            )
        return kernel, "it was asked for", {}
    refused: dict[str, str] = {}
    for name in KERNELS:
        reason = REFUSALS[name](query, key, value, spec) if name in REFUSALS else None
        reason = reason or _not_worth(name, query, key, value, spec)
        if not reason:
            return name, WHY[name], refused
        refused[name] = reason
    raise AssertionError("the reference kernel takes everything")


WHY = {
    "windowed": "softmax over a dot product, under a mask that leaves blocks empty: torch's fused kernel on the others",
    "fused": "softmax over a dot product: torch's fused kernel is the fastest",
    "additive": "a tanh of sums: tiles of it stay near the processor",
    "linear": "shares of products of positive features: sums over the keys, and no table of scores",
    "blockwise": "it takes every score, normalizer, mask and bias in the memory of one block",
    "reference": "it takes every score, normalizer, mask and bias",
}


def _not_worth(name: str, query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> str | None:
    """Why a kernel that could do the work would not be faster."""
    if name not in ("windowed", "additive", "linear", "blockwise"):
        return None
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    pairs = prod(shape)
    if name == "windowed":
        assert spec.mask is not None  # or it has refused
        if pairs < LARGE:
            return f"{pairs:,} pairs are too few to look for empty blocks"
        if fused.is_whole(spec, shape):
            return "torch's kernel knows this mask by name"
        empty = empty_share(spec.mask, shape, query.device)
        return None if empty >= EMPTY else f"the mask leaves {empty:.0%} of the blocks empty"
    if name == "additive":
        return None if pairs >= 2**10 else f"{pairs:,} pairs are too few for tiles"
    if name == "linear":
        t, s = shape[-2:]
        few = not linear.pays(shape, value.shape[-1], spec.mask)
        return f"{t:,} queries and {s:,} keys are too few for sums over features" if few else None
    return None if pairs > BLOCK else f"all {pairs:,} scores fit one block"
