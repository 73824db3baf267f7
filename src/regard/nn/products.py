"""Products x W + b of a trained layer in a precision that is chosen: for decoding, without gradients."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Product = Callable[[Tensor], Tensor]  # from `[n, d]` to `[n, e]`

# Calling oneDNN's fused product takes 15 µs or more, torch's own product of whole numbers 2 to 4. The latter reads the
# weight as it is, which is slower where many rows or a large weight are multiplied. Measured on an EPYC with VNNI.
LARGEST_OF_ONE_ROW = 2**22
LARGEST_OF_FEW_ROWS, FEW_ROWS = 2**18, 32


@cache
def has_fast_int8() -> bool:
    """Whether the processor has instructions for sums of products of 8-bit numbers (VNNI), and torch uses them."""
    return torch.backends.mkldnn.is_available() and bool(torch.cpu._is_vnni_supported())


def make_product(weight: Tensor, bias: Tensor | None, precision: str) -> Product:
    """The product with a weight `[e, d]` and a vector `[e]`, where there is one.

    Args:
        weight, bias: of a linear layer.
        precision: "float32": the weight's own; "bfloat16": both factors are rounded to it; "int8": both factors are
            rounded to 255 levels, with a scale for each row of x and each output of W.
    """
    if precision == "int8":
        return Int8Product(weight, bias)
    return FloatProduct(weight, bias, torch.bfloat16 if precision == "bfloat16" else weight.dtype)


def joined(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and vector of the one layer that computes what several layers compute, one after the other."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    if all(layer.bias is None for layer in layers):
        return weight, None
    own = [weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach() for layer in layers]
    return weight, torch.cat(own)


class FloatProduct:
    """x W + b with both factors in one dtype; the result has the dtype of x.

    Args:
        weight, bias: of a linear layer.
        dtype: of the factors.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.weight = weight.detach().to(dtype).contiguous()
        self.bias = None if bias is None else bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """`[n, e]` from `[n, d]`."""
        if x.dtype == self.dtype:
            return linear(x, self.weight, self.bias)
        return linear(x.to(self.dtype), self.weight, self.bias).to(x.dtype)


class Int8Product:
    """x W + b with x ≈ s q and W ≈ t q', q and q' whole numbers from -127 to 127.

    s = max |x| / 127 of each row of x, and t = max |W| / 127 of each output, so that no row depends on another one. The
    product of whole numbers is exact.

    Args:
        weight, bias: of a linear layer, in float32 on a CPU.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach().float()
        self.scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        whole = (weight / self.scale[:, None]).round().to(torch.int8)
        self.bias = torch.zeros_like(self.scale) if bias is None else bias.detach().float()
        self.least = weight.new_full((1,), 1e-14)  # the scale of a row of zeros
        self.scaled_sums = _scaled_sums(whole, self.scale)

    def __call__(self, x: Tensor) -> Tensor:
        """`[n, e]` from `[n, d]`."""
        scale = torch.add(self.least, x.abs().amax(-1, keepdim=True), alpha=1 / 127)
        whole = torch.mul(x, scale.reciprocal()).round_().to(torch.int8)
        found = self.scaled_sums(whole)
        return torch.addcmul(self.bias, found, scale, out=found)


def _scaled_sums(weight: Tensor, scale: Tensor) -> Product:
    """From whole numbers q `[n, d]` in int8, which it changes, to t Σ q q' `[n, e]` in float32.

    There are two ways with the same bits, chosen by size: torch's product of whole numbers, and oneDNN's for many rows.
    oneDNN multiplies by t while the sums are in registers. Its first factor is from 0 to 255: on a processor without
    AMX, numbers with a sign have no fast kernel. q + 128 is computed modulo 256, which torch does faster than it
    converts to numbers without a sign.

    Args:
        weight: q', `[e, d]` in int8.
        scale: t, `[e]`.
    """
    turned, size = weight.t(), weight.numel()

    def small(q: Tensor) -> Tensor:
        if q.stride(0) != q.shape[1]:  # of a single row it may be any number, and torch._int_mm takes it for the width
            q = q.reshape(-1).view(q.shape)
        return torch.mul(torch._int_mm(q, turned), scale)

    if weight.shape[1] < 2:  # torch._int_mm reads beyond a matrix of one column
        return lambda q: (q.float() @ turned.float()).mul_(scale)

    if not has_fast_int8() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return small
    multiply, packed = torch.ops.onednn.qlinear_pointwise.default, torch.ops.onednn.qlinear_prepack(weight, None)
    zeros, half = torch.zeros(len(weight), dtype=torch.int64), 128
    rest: Any = (None, 1.0, 0, torch.float32, "none", [], "")  # no bias; the result is neither scaled nor rounded

    def large(q: Tensor) -> Tensor:
        found: Tensor = multiply(q.view(torch.uint8).add_(half), 1.0, half, packed, scale, zeros, *rest)
        return found

    if size > LARGEST_OF_ONE_ROW:
        return large
    few = FEW_ROWS if size <= LARGEST_OF_FEW_ROWS else 1
    return lambda q: small(q) if len(q) <= few else large(q)
