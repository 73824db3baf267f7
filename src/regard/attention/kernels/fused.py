"""The fused kernel: torch's scaled_dot_product_attention, for softmax over anything that is a dot product."""

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from regard.attention.masks import Causal
from regard.attention.normalizers import Softmax
from regard.attention.scores import Product, ScaledDot
from regard.attention.spec import Spec
from regard.shapes import batch_shape, check_widths

SHORT = 512  # keys


def refusal(query: Tensor, key: Tensor, spec: Spec) -> str | None:
    """Why this kernel cannot do the work; None if it can."""
    if not isinstance(spec.score, Product):
        return f"the score {type(spec.score).__name__} is not a dot product"
    if spec.score.softcap is not None:
        return "the score is soft-capped, which torch's kernel cannot do"
    if type(spec.normalizer) is not Softmax:
        return f"the normalizer {type(spec.normalizer).__name__} is not softmax"
    if spec.dropout:
        return "dropout on the weights: torch would drop others than regard does"
    if not query.numel() or not key.numel():
        return "there is nothing to look at: an axis of size 0"
    if spec.bias is not None and spec.bias.is_learned():
        return "the bias is learned"
    if torch._C._are_functorch_transforms_active():
        return "inside a torch.func transform"
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
        wide = torch.promote_types(query.dtype, torch.float32)  # scores are made in float32 or more
        scale, (q, k) = 1.0, spec.score.as_dot(query.to(wide), key.to(wide))
    check_widths(q, k)
    # values may have more of the batch
    whole = (*(v if s == 1 else s for s, v in zip(shape[:-2], value.shape[:-2], strict=True)), *shape[-2:])
    dtype = _fastest_dtype(q, k, value)
    triangle = isinstance(spec.mask, Causal) and spec.bias is None and spec.mask.is_triangle(shape)
    # torch's kernel wants one width; zeros at the end change no product, and come off the output again
    width = max(k.shape[-1], value.shape[-1])
    q, k, v = (_four_axes(pad(t.to(dtype), (0, width - t.shape[-1])), whole) for t in (q, k, value))
    mask = None if triangle else _torch_mask(spec, shape, query.device, dtype)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        output = _Differentiable.apply(q, k, v, mask, triangle, scale)  # type: ignore[no-untyped-call]
    else:
        output = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=triangle, scale=scale)
    result: Tensor = output[..., : value.shape[-1]].reshape(*whole[:-1], value.shape[-1])
    return result.to(value.dtype)


class _Differentiable(torch.autograd.Function):
    """Torch's kernel with its own first derivative, and the plain formula's second: torch's kernel has none."""

    @staticmethod
    def forward(ctx, q, k, v, mask, triangle, scale):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q, k, v, mask)
        ctx.plain = triangle, scale
        with torch.enable_grad():
            q, k, v = ctx.inputs = tuple(t.detach().requires_grad_() for t in (q, k, v))
            ctx.output = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=triangle, scale=scale)
        return ctx.output.detach()

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():  # this derivative will itself be differentiated
            q, k, v, mask = ctx.saved_tensors
            output = _plain(q, k, v, mask, *ctx.plain)
            gradients = torch.autograd.grad(output, (q, k, v), upstream, create_graph=True)
        else:
            gradients = torch.autograd.grad(ctx.output, ctx.inputs, upstream, retain_graph=True)
        return (*gradients, None, None, None)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, triangle: bool, scale: float) -> Tensor:
    """The formula that torch's kernel computes, in operations that can be differentiated twice."""
    scores = q @ k.transpose(-2, -1) * scale
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if triangle:
        allowed = allowed.tril()
    elif mask is not None and mask.dtype == torch.bool:
        allowed = mask.expand_as(scores)
    elif mask is not None:
        scores = scores + mask
    weights: Tensor = Softmax()(scores, allowed)[0]
    return weights @ v


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
