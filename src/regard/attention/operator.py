"""attend: the operator that everything else is made of. Read this first.

    output = normalize(score(query, key) + bias, mask) · value

What it means stands in `kernels/reference.py`; here the inputs are checked and a kernel is chosen.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from regard.attention.biases import BiasLike
from regard.attention.kernels.fused import fused, refusal
from regard.attention.kernels.reference import is_poisoned, reference
from regard.attention.masks import MaskLike
from regard.attention.normalizers import NormalizerLike
from regard.attention.scores import ScoreLike
from regard.attention.spec import Spec, make_spec
from regard.attention.watch import computing, is_attended, tell
from regard.errors import KernelError, unknown
from regard.shapes import batch_shape, check, share_heads

KERNELS = ("auto", "reference", "fused")
Some = Float[Tensor, "..."]


@dataclass(frozen=True)
class Plan:
    """Which kernel will do the work, and why.

    Attributes:
        kernel: its name.
        why: one sentence.
        refused: every kernel that was passed over, with the reason.
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
        kernel: "auto", or the name of the kernel that must do it.

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
    name = _choose(query, shared_key, spec, kernel)[0]
    answer = tell(query, key, value, spec)
    if answer is not None:
        return answer
    with computing() if is_attended() else nullcontext():
        return _compute(name, query, shared_key, shared_value, spec)


def _compute(name: str, query: Some, key: Some, value: Some, spec: Spec) -> Some:
    seed = int(torch.randint(2**31, ())) if spec.dropout else 0
    with torch.autocast(query.device.type, enabled=False):
        if name == "fused" and not (spec.mask is not None and is_poisoned(query, key, value)):
            output = fused(query, key, value, spec)
            if spec.mask is None or not is_poisoned(output):  # a forbidden score may have overflowed
                return output
        return reference(query, key, value, spec, seed)[0]


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
    name, why, refused = _choose(query, share_heads(query, key), spec, kernel)
    pairs = prod(batch_shape(query, share_heads(query, key))) * query.shape[-2] * key.shape[-2]
    wide = 8 if value.dtype == torch.float64 else 4
    dense_mask = pairs if spec.mask is not None else 0
    extra = 3 * pairs * wide if name == "reference" else dense_mask
    return Plan(name, why, refused, extra, 2 * pairs * (key.shape[-1] + value.shape[-1]))


def _choose(query: Tensor, key: Tensor, spec: Spec, kernel: str) -> tuple[str, str, dict[str, str]]:
    if kernel not in KERNELS:
        raise unknown("kernel", kernel, KERNELS)
    reason = refusal(query, key, spec)
    if kernel == "fused" and reason:
        raise KernelError(f"kernel 'fused' cannot do this: {reason}; kernel='auto' or 'reference' can")
    if kernel == "reference":
        return "reference", "it was asked for", {}
    if reason:
        return "reference", "it takes every score, normalizer, mask and bias", {"fused": reason}
    return "fused", "softmax over a dot product: torch's fused kernel is the fastest", {}
