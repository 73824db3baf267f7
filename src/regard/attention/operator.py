"""attend: the operator that everything else is made of. Read this first.

    output = normalize(score(query, key) + bias, mask) · value

What it means stands in `kernels/reference.py`; here the inputs are checked and a kernel is chosen.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regard.arguments import check_arguments
from regard.attention.biases import BiasLike
from regard.attention.kernels import additive, blockwise, fused, linear, reference, windowed
from regard.attention.kernels.kernel import Kernel, Seed
from regard.attention.kernels.nonfinite import guarded
from regard.attention.masks import MaskLike
from regard.attention.normalizers import NormalizerLike
from regard.attention.scores import ScoreLike
from regard.attention.spec import Spec, make_spec
from regard.attention.tracing import goes_forward, is_autocast, is_traced
from regard.attention.watch import computing, is_attended, notify
from regard.errors import KernelError, unknown
from regard.shapes import batch_shape, check, check_tensors, share_heads

Some = Float[Tensor, "..."]

# those that can do less stand before those that can do more
KERNELS: dict[str, Kernel] = {
    module.KERNEL.name: module.KERNEL for module in (windowed, fused, additive, linear, blockwise, reference)
}
_NO_GRAPH = "this kernel of attend has loops that depend on values: kernel='auto' has a graph"
GRAPH = "a graph is traced, or a torch.func transform runs: what it does may depend on shapes alone"
FORWARD = "derivatives are taken forward here, and this kernel has none of these"


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

    A query that may attend to no key gets output 0 and gradient 0; what a masked key or value holds,
    NaN included, never reaches the query that may not attend to it.

    Args:
        query: `[*batch, T, d_k]`; heads are one of the batch axes, `[batch, heads, T, d_k]`.
        key: `[*batch, S, d_k]`; batch axes equal or 1; the heads (axis -3) may be fewer than the
            query's, if their number divides it.
        value: `[*batch, S, d_v]`.
        score: a name, a `Score`, or a callable (query_tile, key_tile) -> score_tile.
        normalizer: a name, a `Normalizer`, or a callable (scores, allowed) -> weights.
        mask: a regard mask or a bool tensor that broadcasts to `[*batch, T, S]`; True = may attend.
        bias: a float tensor that broadcasts to `[*batch, T, S]`, added before masking.
        dropout: probability of dropping a weight, after the normalizer.
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
    if kernel != "auto" and torch.compiler.is_dynamo_compiling() and not _has_graph(kernel):
        outside = torch.compiler.disable(attend, reason=_NO_GRAPH)  # made here: it imports torch's compiler
        return outside(  # type: ignore[no-any-return]
            query, key, value, score=score, normalizer=normalizer, mask=mask, bias=bias, dropout=dropout, kernel=kernel
        )
    spec = make_spec(score, normalizer, mask, bias, dropout)
    check_tensors(value=value)
    check(query, key, value)
    spec.check_data(query)
    shared_key, shared_value = share_heads(query, key), share_heads(query, value)
    name = choose(query, shared_key, shared_value, spec, kernel)[0]
    answer = notify(query, key, value, spec)
    if answer is not None:
        return answer
    seed: Seed = torch.randint(2**31, (), device=query.device) if spec.dropout else 0
    if not is_attended():
        return compute(name, query, shared_key, shared_value, spec, seed)[0]
    with computing():
        return compute(name, query, shared_key, shared_value, spec, seed)[0]


def _has_graph(kernel: str) -> bool:
    return kernel not in KERNELS or KERNELS[kernel].traces


def compute(name: str, query: Some, key: Some, value: Some, spec: Spec, seed: Seed) -> tuple[Some, Some]:
    """Output and row numbers by this kernel, with as many heads in keys and values as in queries."""
    with autocast_off(query.device.type):
        if spec.mask is None or name == "reference":  # the reference guards itself
            return KERNELS[name].run(query, key, value, spec, seed)

        def exact(inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return blockwise.blockwise(*inputs, spec, seed, poisoned=True)

        return guarded(KERNELS[name], (query, key, value), spec, seed, exact)


def autocast_off(device: str) -> AbstractContextManager[Any]:
    """Autocast ends at the operator's door: kernels compute scores in float32 themselves."""
    if not is_autocast(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


@check_arguments
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
    name, why, refused = choose(query, key, value, spec, kernel)
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    flops = 2 * prod(shape) * (key.shape[-1] + value.shape[-1])
    return Plan(name, why, refused, KERNELS[name].extra_bytes(query, key, value, spec, shape), flops)


def choose(query: Tensor, key: Tensor, value: Tensor, spec: Spec, kernel: str) -> tuple[str, str, dict[str, str]]:
    """The name of the kernel that does the work, why, and why not each faster one."""
    if kernel not in ("auto", *KERNELS):
        raise unknown("kernel", kernel, ("auto", *KERNELS))
    traced, forward = is_traced(query, key, value), goes_forward(query, key, value, also=spec.tensors)

    def refusal(one: Kernel) -> str | None:
        if traced and not one.traces:
            return GRAPH
        return FORWARD if forward and not one.goes_forward else one.refusal(query, key, value, spec)

    if kernel != "auto":
        reason = refusal(KERNELS[kernel])
        if reason:
            able = [name for name, one in KERNELS.items() if not refusal(one)]
            raise KernelError(
                f"kernel {kernel!r} cannot do this: {reason}; kernel='auto' or {' or '.join(map(repr, able))} can"
            )
        return kernel, "it was asked for", {}
    refused: dict[str, str] = {}
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    for name, one in KERNELS.items():
        reason = refusal(one) or (None if traced else one.worth(query, key, value, spec, shape))
        if not reason:
            return name, one.why, refused
        refused[name] = reason
    raise AssertionError("the reference kernel takes everything")
