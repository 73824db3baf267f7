"""The fused kernel: torch's scaled_dot_product_attention, for softmax over anything that is a dot product."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from regard.attention.biases import Added
from regard.attention.masks import Causal
from regard.attention.normalizers import Softmax
from regard.attention.scores import Product, ScaledDot
from regard.attention.spec import Spec
from regard.shapes import batch_shape

SHORT = 512  # keys


def refusal(query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> str | None:
    """Why this kernel cannot do the work; None if it can."""
    if not isinstance(spec.score, Product):
        return f"the score {type(spec.score).__name__} is not a dot product"
    if type(spec.normalizer) is not Softmax:
        return f"the normalizer {type(spec.normalizer).__name__} is not softmax"
    if spec.dropout:
        return "dropout on the weights: torch would drop others than regard does"
    if not query.numel() or not key.numel():
        return "there is nothing to look at: an axis of size 0"
    if isinstance(spec.bias, Added) and spec.bias.tensor.requires_grad:
        return "the bias is learned"
    if value.shape[-1] != key.shape[-1]:
        return f"values have width {value.shape[-1]} and keys {key.shape[-1]}"
    return None


def fused(query: Tensor, key: Tensor, value: Tensor, spec: Spec) -> Tensor:
    """The same attention as the reference kernel, by torch's fused kernel.

    Returns:
        output `[*batch, T, d_v]` in value's dtype.
    """
    assert isinstance(spec.score, Product)  # refusal() has seen to it
    shape = (*batch_shape(query, key), query.shape[-2], key.shape[-2])
    if isinstance(spec.score, ScaledDot):  # torch scales inside, where half precision does not round the query
        scale, (q, k) = spec.score.factor(query.shape[-1]), (query, key)
    else:
        scale, (q, k) = 1.0, spec.score.as_dot(query, key)
    dtype = _fastest_dtype(q, k, value)
    triangle = isinstance(spec.mask, Causal) and spec.bias is None and spec.mask.is_triangle(shape)
    q, k, v = (_four_axes(tensor.to(dtype), shape) for tensor in (q, k, value))
    mask = None if triangle else _torch_mask(spec, shape, query.device, dtype)
    output = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=triangle, scale=scale)
    return output.reshape(*shape[:-1], value.shape[-1]).to(value.dtype)


def _fastest_dtype(query: Tensor, key: Tensor, value: Tensor) -> torch.dtype:
    """float32 where a short half-precision attention on a CPU needs a gradient: torch's backward in half is slower."""
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    half = value.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if trains and half and value.device.type == "cpu" and key.shape[-2] <= SHORT else value.dtype


def _four_axes(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[*batch, n, d]` as `[B, H, n, d]`: other numbers of axes take torch's slow path."""
    batch = shape[:-2]
    tensor = tensor.expand(*batch, *tensor.shape[-2:])
    return tensor.reshape(-1, batch[-1] if batch else 1, *tensor.shape[-2:])


def _torch_mask(spec: Spec, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor | None:
    rows, columns = torch.arange(shape[-2], device=device), torch.arange(shape[-1], device=device)
    mask = None if spec.mask is None else spec.mask.tile(rows, columns, shape)
    if spec.bias is not None:
        bias = spec.bias.tile(rows, columns, shape).to(dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    if mask is None:
        return None
    mask = mask.reshape(*[1] * (max(4, len(shape)) - mask.ndim), *mask.shape)
    return _four_axes(mask, shape) if len(shape) > 4 else mask
